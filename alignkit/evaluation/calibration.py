"""How sure answers are, and how often they are right: bins, and the expected calibration error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 10  # of confidence, from 0 to 1


@dataclass(frozen=True)
class Cases:
    """Answers: how sure the policy is, from 0 to 1, and whether it is right, 0 or 1; [answers] each."""

    sure: NDArray[Any]
    right: NDArray[Any]

    @classmethod
    def of(cls, cases: Sequence[Any]) -> Cases:
        """From pairs of confidence and rightness."""
        import numpy as np

        sure, right = zip(*cases, strict=True)
        return cls(np.asarray(sure, dtype=float), np.asarray(right, dtype=float))

    def take(self, places: NDArray[Any]) -> Cases:
        """The answers at these places."""
        return Cases(self.sure[places], self.right[places])


def error(cases: Cases) -> float | None:
    """The expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3).

    It is the mean distance between accuracy and confidence over bins of equal width, weighted by their answers.
    """
    return sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in bins(cases)) / len(cases.sure)


def places(cases: Cases) -> NDArray[Any]:
    """The bin of each answer."""
    import numpy as np

    return np.minimum((cases.sure * BINS).astype(int), BINS - 1)


def bins(cases: Cases) -> list[dict[str, Any]]:
    """Confidence and accuracy in bins of equal width; a bin without answers is left out."""
    import numpy as np

    place, rows = places(cases), []
    for number in np.unique(place).tolist():
        inside = cases.take(place == number)
        mean = {"confidence": float(inside.sure.mean()), "accuracy": float(inside.right.mean())}
        rows.append({"low": number / BINS, "high": (number + 1) / BINS, "n": len(inside.sure), **mean})
    return rows
