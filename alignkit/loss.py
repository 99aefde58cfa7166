"""The loss of a micro-batch: named terms of unreduced values, each averaged over the whole global batch.

Shapes: R responses, T response tokens (padded), P pairs, G groups.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Per(enum.Enum):
    """What one entry of a term stands for, and therefore what the term is averaged over."""

    TOKEN = "token"
    PAIR = "pair"
    RESPONSE = "response"
    GROUP = "group"


@dataclass(frozen=True)
class Term:
    """One named part of a loss: values [R, T] per token, [P] per pair, [R] per response or [G] per group."""

    values: Tensor
    per: Per
    coefficient: float = 1.0


def per_token(values: Tensor, coefficient: float = 1.0) -> Term:
    """Average over all counted tokens of the global batch. values: [R, T]; entries outside the mask are ignored."""
    return Term(values, Per.TOKEN, coefficient)


def per_pair(values: Tensor, coefficient: float = 1.0) -> Term:
    """Average over all pairs of the global batch. values: [P]."""
    return Term(values, Per.PAIR, coefficient)


def per_response(values: Tensor, coefficient: float = 1.0) -> Term:
    """Average over all responses with a counted token in the global batch. values: [R]."""
    return Term(values, Per.RESPONSE, coefficient)


def per_group(values: Tensor, coefficient: float = 1.0) -> Term:
    """Average over all groups of the global batch. values: [G]."""
    return Term(values, Per.GROUP, coefficient)


class Loss(dict[str, Term]):
    """Named terms. Each is averaged over the global batch, multiplied by its coefficient, and added to the loss.

    A term's metric is its average without the coefficient.
    """

    def __init__(self, **terms: Term):
        super().__init__(terms)
