"""A network without its numbers, from which it can be made again."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def skeleton(network: Any) -> Any:
    """A copy of a network whose parameters have a shape and a dtype, but no numbers."""
    return _with(network, lambda name, p: torch.empty_like(p, device="meta"))


def filled(bones: Any, weights: Mapping[str, Tensor]) -> Any:
    """A copy of a skeleton with these parameters, by name."""
    return _with(bones, lambda name, p: weights[name])


def _with(network: Any, tensor: Any) -> Any:
    """A copy with other tensors as parameters; those that are tied stay tied."""
    new = {id(p): nn.Parameter(tensor(name, p), requires_grad=False) for name, p in network.named_parameters()}
    return copy.deepcopy(network, new)
