"""One comparison of two computations: their values, and the gradients of what they read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def gradients(out: Tensor, learned: Sequence[Tensor]) -> list[Tensor]:
    """Of a sum in which every number of the output has a weight of its own."""
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
    loss = (out.double() * weights).sum()
    return list(torch.autograd.grad(loss, list(learned), retain_graph=True))


def same(
    found: Tensor,
    wanted: Tensor,
    learned: Sequence[Tensor] = (),
    others: Sequence[Tensor] = (),
    **tolerance: Any,
) -> None:
    """others: what `wanted` was computed from, if not from `learned`."""
    torch.testing.assert_close(found, wanted, **tolerance)
    if learned:
        theirs = gradients(wanted, others or learned)
        torch.testing.assert_close(gradients(found, learned), theirs, **tolerance)


def distance(found: Tensor, wanted: Tensor) -> float:
    """The norm of the difference, relative to that of `wanted`."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm())
