"""Sums, means and whitening under a mask, and where it ends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alignkit.functional._tensors import nearly_equal, widen, zero_masked


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of the valid entries, over everything or along `dim`."""
    valid = zero_masked(widen(x), mask)
    return valid.sum() if dim is None else valid.sum(dim)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of the valid entries, over everything or along `dim`; 0 with a zero gradient if there
    are none.

    Args:
        x: Numbers of any shape.
        mask: True for entries that count, in the shape of `x`.
        dim: The dimension to average over; None: all.
    """
    count = mask.bool().sum() if dim is None else mask.bool().sum(dim)
    return masked_sum(x, mask, dim) / count.clamp(min=1)


def sum_tokens(x: Tensor, mask: Tensor) -> Tensor:
    """Sum over the valid tokens of each sequence: [B, T] -> [B]. For log-probabilities this is
    log pi(y | x).

    Args:
        x: [B, T].
        mask: [B, T]: true for tokens that count; None: all.
    """
    return masked_sum(x, mask, dim=-1)


def sum_present(terms: Sequence[Tensor]) -> Tensor:
    """Sum of tensors of one shape, without their NaNs; NaN where all of them are."""
    total = torch.zeros_like(terms[0])
    for term in terms:
        total = total + torch.where(term.isnan(), 0.0, term)
    return total.masked_fill(torch.stack([term.isnan() for term in terms]).all(dim=0), float("nan"))


def mean_tokens(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the valid tokens of each sequence: [B, T] -> [B].

    Args:
        x: [B, T].
        mask: [B, T]: true for tokens that count; None: all.
    """
    return masked_mean(x, mask, dim=-1)


def masked_whiten(
    x: Tensor, mask: Tensor, shift_mean: bool = True, unbiased: bool = True, eps: float = 1e-8
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) over all valid entries, 0 on masked ones. Same shape as
    `x`, no gradient.

    `unbiased` selects the sample variance. `shift_mean=False` adds the mean back, so that only the
    scale changes (Ziegler et al. 2019, lm-human-preferences). Pass the whole batch: the statistics
    of its parts differ. Entries that differ only by rounding become 0.

    Args:
        x: Numbers of any shape.
        mask: True for entries that count, in the shape of `x`.
        shift_mean: Whether the mean becomes 0.
        unbiased: Whether the variance is divided by one less than the number of entries.
        eps: Is added to the variance, inside of the root.
    """
    with torch.no_grad():
        values, count = widen(x), mask.bool().sum()
        mean = masked_mean(values, mask)
        # sqrt(eps) is 1e-4, so without a second pass the mean's rounding error would appear 10,000
        # times larger.
        mean = mean + masked_mean(values - mean, mask)
        variance = masked_sum((values - mean) ** 2, mask) / (count - int(unbiased)).clamp(min=1)
        white = (values - mean) * torch.rsqrt(variance + eps)
        valid = values[mask.bool()]
        if len(valid) and nearly_equal(valid.max(), valid.min()):
            white = torch.zeros_like(white)
        return zero_masked(white if shift_mean else white + mean, mask)


def whiten(x: Tensor, unbiased: bool = True, eps: float = 1e-8) -> Tensor:
    """`masked_whiten` of all entries, such as the scores [N] of a whole batch of responses."""
    return masked_whiten(x, torch.ones_like(x, dtype=torch.bool), unbiased=unbiased, eps=eps)


def last_index(mask: Tensor) -> Tensor:
    """Index of the last valid token of each row: [B, T] -> [B], -1 for a row without one."""
    # From 1, so that 0 means masked; the 1 is subtracted again, and an empty row has -1.
    positions = torch.arange(1, mask.shape[-1] + 1, device=mask.device)
    return (mask.bool() * positions).amax(-1) - 1
