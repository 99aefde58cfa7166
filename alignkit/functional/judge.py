"""Preferences of an AI judge that has read both candidates in both orders."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alignkit.functional._tensors import check_shapes, nearly_equal, widen


def order_probabilities(logp_ab: Tensor, logp_ba: Tensor) -> tuple[Tensor, Tensor]:
    """P(A better) as judged in the order A, B and in the order B, A: [N, 2] each -> ([N], [N]).

    Column 0 is the judge's log-probability of the token that names the first candidate shown,
    column 1 the second. They are normalized over these two tokens. RLAIF, Lee et al. 2023, section
    2.1.
    """
    check_shapes(logp_ab=logp_ab, logp_ba=logp_ba)
    ab, ba = widen(logp_ab), widen(logp_ba)
    # The softmax of two is a sigmoid. In the order B, A, column 1 is A.
    return torch.sigmoid(ab[:, 0] - ab[:, 1]), torch.sigmoid(ba[:, 1] - ba[:, 0])


def judge_probability(logp_ab: Tensor, logp_ba: Tensor) -> Tensor:
    """P(A better) [N]: the mean over both orders, after undoing the swap. Lee et al. 2023, section
    2.1.

    With sigmoid(x) = (1 + tanh(x / 2)) / 2: unlike sigmoid, tanh is odd in floating point, so that
    a judge who only sees positions has exactly 0.5.
    """
    check_shapes(logp_ab=logp_ab, logp_ba=logp_ba)
    ab, ba = widen(logp_ab), widen(logp_ba)
    return 0.5 + (torch.tanh((ab[:, 0] - ab[:, 1]) / 2) + torch.tanh((ba[:, 1] - ba[:, 0]) / 2)) / 4


def clamp_cai(p: Tensor, low: float = 0.4, high: float = 0.6) -> Tensor:
    """Probabilities clamped to [low, high]: chain of thought makes judges overconfident. Bai et al.
    2022b, sec. 4.1.
    """
    return p.clamp(low, high)


def preferred(scores: Sequence[Sequence[float]]) -> list[int | None]:
    """Index of the better of two scored samples, None for a tie, which forms no pair. Online DPO,
    Guo et al. 2024.

    Args:
        scores: The two of each prompt.
    """
    return [None if nearly_equal(a, b) else int(b > a) for a, b in scores]
