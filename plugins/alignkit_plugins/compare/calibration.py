"""How sure answers are, and how often they are right: bins, and the expected calibration error with
its interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alignkit import seeds
from alignkit.evaluation.statistics import CONFIDENCE, Estimate

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 10  # of confidence, from 0 to 1
DRAWS = 1000  # of the noise of an error
GRID = 100  # true errors that are tried


def error(
    sure: Sequence[float], right: Sequence[float], seed: int, units: Sequence[int] | None = None
) -> Estimate:
    """The expected calibration error with its interval.

    The error is the mean distance between accuracy and confidence over bins of equal width,
    weighted by their answers (Guo et al. 2017, arXiv:1706.04599, equation 3). Measured, it is too
    large, because noise in a bin cannot cancel (Roelofs et al. 2022, arXiv:2012.08668), and so are
    all draws of a bootstrap. Instead, true errors are tried, with the distances in proportion to
    those measured and the noise of a bootstrap around them: the interval has those by which the
    measured error is neither too large nor too small, and the estimate is the one by which it is
    the median (Hansen 1999, "The grid bootstrap and the autoregressive model").

    Args:
        sure: How sure the model is of each answer, from 0 to 1.
        right: Whether it is right, 0 or 1, or with which probability.
        seed: Of the bootstrap.
        units: A number for each answer; answers with the same one depend on each other.
    """
    import numpy as np

    answers = len(sure)
    if answers == 0:
        return {"mean": None, "low": None, "high": None, "n": 0}
    _, unit = np.unique(np.arange(answers) if units is None else units, return_inverse=True)
    n = int(unit.max()) + 1
    owed = np.zeros((n, BINS))  # the distances of each unit, in their bins
    np.add.at(owed, (unit, _bin(sure)), (np.array(sure) - right) * (n / answers))
    gaps = owed.mean(0)
    seen = float(abs(gaps).sum())
    if n < 2:
        return {"mean": seen, "low": None, "high": None, "n": n}
    drawn = seeds.stream(seed, "bins", n).multinomial(n, np.full(n, 1 / n), size=DRAWS)
    noise = (drawn @ owed / n - gaps) * np.sqrt(n / (n - 1))
    tail = (1 - CONFIDENCE) / 2
    true = np.linspace(0, seen + 2 * np.quantile(abs(noise).sum(1), 1 - tail), GRID)
    shape = gaps / seen if seen else gaps
    measured = [abs(one * shape + noise).sum(1) for one in true]
    least, middle, most = np.quantile(measured, [tail, 0.5, 1 - tail], axis=1)
    low, mean = true[most >= seen][0], true[middle >= seen][0]
    high = np.max(true[least <= seen], initial=0.0)  # less than any true error would give, by luck
    return {"mean": float(mean), "low": float(low), "high": float(high), "n": n}


def error_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Estimate:
    """The difference of two errors of the same answers, with the interval that theirs give.

    Zou and Donner 2008, "Construction of confidence limits about effect measures: a general
    approach". At the same prompts it is too wide rather than too narrow.
    """
    mean, n = ours["mean"] - theirs["mean"], ours["n"]
    if n < 2:
        return {"mean": mean, "low": None, "high": None, "n": n}
    down = math.hypot(ours["mean"] - ours["low"], theirs["mean"] - theirs["high"])
    up = math.hypot(ours["mean"] - ours["high"], theirs["mean"] - theirs["low"])
    return {"mean": mean, "low": mean - down, "high": mean + up, "n": n}


def bins(sure: Sequence[float], right: Sequence[float]) -> list[dict[str, Any]]:
    """Confidence and accuracy in bins of equal width; a bin without answers is left out."""
    import numpy as np

    place, rows = _bin(sure), []
    for number in np.unique(place).tolist():
        inside = place == number
        row = {"low": number / BINS, "high": (number + 1) / BINS, "n": int(inside.sum())}
        row |= {"confidence": float(np.array(sure)[inside].mean())}
        rows.append(row | {"accuracy": float(np.array(right)[inside].mean())})
    return rows


def _bin(sure: Sequence[float]) -> NDArray[Any]:
    """The bin of each answer."""
    import numpy as np

    return np.minimum((np.array(sure) * BINS).astype(int), BINS - 1)
