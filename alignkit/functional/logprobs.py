"""Entropies of tokens, and where sampled sequences end."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def entropy_of(log_probabilities: Tensor) -> Tensor:
    """Entropy of distributions given as log-probabilities: [..., V] -> [...] nats."""
    # A forbidden token contributes nothing, but 0 * -inf would be nan.
    finite = log_probabilities.masked_fill(log_probabilities == -math.inf, 0.0)
    return -(log_probabilities.exp() * finite).sum(-1)


def last_index(mask: Tensor) -> Tensor:
    """Index of the last valid token of each row: [B, T] -> [B], -1 for a row without one."""
    # From 1, so that 0 means masked; the 1 is subtracted again, and an empty row has -1.
    positions = torch.arange(1, mask.shape[-1] + 1, device=mask.device)
    return (mask.bool() * positions).amax(-1) - 1
