"""Log-probabilities and entropies of tokens, and the masks and positions of sampled sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from alignkit.functional._tensors import check_shapes, widen


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature)[tokens]: logits [..., V], tokens [...] -> [...] nats.

    Raises `ValueError` if the shapes do not match or the temperature is not positive.
    """
    check_shapes(tokens=tokens, logits_without_vocabulary=logits[..., 0])
    return log_softmax(logits, temperature).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def token_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of softmax(logits / temperature): [..., V] -> [...] nats. A logit of -inf forbids its
    token.
    """
    return entropy_of(log_softmax(logits, temperature))


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) in float32 or wider; `ValueError` unless the temperature is
    positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    return torch.log_softmax(widen(logits) / temperature, dim=-1)


def entropy_of(log_probabilities: Tensor) -> Tensor:
    """Entropy of distributions given as log-probabilities: [..., V] -> [...] nats."""
    # A forbidden token contributes nothing, but 0 * -inf would be nan.
    finite = log_probabilities.masked_fill(log_probabilities == -math.inf, 0.0)
    return -(log_probabilities.exp() * finite).sum(-1)


def response_mask(tokens: Tensor, eos_ids: int | Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Mask of sampled responses [B, T]: (mask [B, T] bool, has_eos [B] bool, lengths [B]).

    A response ends with its first end token and includes it. Padding ids are ignored, because the
    padding token may be an end token.
    """
    ends = torch.tensor(
        [eos_ids] if isinstance(eos_ids, int) else list(eos_ids), device=tokens.device
    )
    is_end = torch.isin(tokens, ends.to(tokens.dtype))
    # Ends before the token, itself excluded, so that the first end token still counts.
    ends_before = is_end.long().cumsum(-1) - is_end.long()
    mask = ends_before == 0
    return mask, is_end.any(-1), mask.sum(-1)


def last_index(mask: Tensor) -> Tensor:
    """Index of the last valid token of each row: [B, T] -> [B], -1 for a row without one."""
    # From 1, so that 0 means masked; the 1 is subtracted again, and an empty row has -1.
    positions = torch.arange(1, mask.shape[-1] + 1, device=mask.device)
    return (mask.bool() * positions).amax(-1) - 1


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that ignore padding on either side: [B, T] -> [B, T], 0 on padding."""
    valid = attention_mask.long()
    return (valid.cumsum(-1) - 1) * valid  # padding on the left would have -1
