"""What a score pays for: its slope on features of answers to the same prompt, over all iterations so far.

A prompt's difficulty does not count, because answers are only compared with others to the same prompt in the same
iteration. The standard error is clustered by prompt (Liang and Zeger 1986), as answers to a prompt resemble each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

FEWEST = 10  # prompts in which a feature varies


class Effects:
    """Sums from which the slope of each score on each feature follows; they grow by one look at a time.

    scores: their names.
    """

    def __init__(self, scores: Sequence[str]):
        import numpy as np

        self.scores = tuple(scores)
        self._columns: dict[str, int] = {}  # of the features
        self._prompts, self._xx, self._xx2 = np.zeros(0), np.zeros(0), np.zeros(0)
        self._xy, self._xy2, self._xyxx = (np.zeros((len(scores), 0)) for _ in range(3))

    def add(self, names: Sequence[str], features: Floats, scores: Mapping[str, Floats], groups: Floats) -> None:
        """Add answers. features: [answers, names]. scores: each [answers]. groups: each answer's prompt, ascending."""
        import numpy as np

        _, starts = np.unique(groups, return_index=True)
        x = centered(features, starts)
        xx = np.add.reduceat(x * x, starts, axis=0)  # [prompts, names]
        places = self._places(names)
        self._prompts[places] += (xx > 0).sum(0)
        self._xx[places] += xx.sum(0)
        self._xx2[places] += (xx * xx).sum(0)
        for row, name in enumerate(self.scores):
            xy = np.add.reduceat(x * centered(scores[name][:, None], starts), starts, axis=0)
            self._xy[row, places] += xy.sum(0)
            self._xy2[row, places] += (xy * xy).sum(0)
            self._xyxx[row, places] += (xy * xx).sum(0)

    def _places(self, names: Sequence[str]) -> Any:
        import numpy as np

        for name in names:
            self._columns.setdefault(name, len(self._columns))
        more = len(self._columns) - len(self._xx)
        if more:
            self._prompts, self._xx, self._xx2 = (np.pad(a, (0, more)) for a in (self._prompts, self._xx, self._xx2))
            self._xy, self._xy2, self._xyxx = (
                np.pad(a, ((0, 0), (0, more))) for a in (self._xy, self._xy2, self._xyxx)
            )
        return np.array([self._columns[name] for name in names], dtype=int)

    def slopes(self, score: str, names: Sequence[str], level: float) -> tuple[Floats, Floats, Floats]:
        """The slope of a score on each feature, and its interval at 1 - level; NaN where too few prompts vary in it."""
        import numpy as np
        from scipy import stats

        row, places = self.scores.index(score), self._places(names)
        prompts, xx = self._prompts[places], self._xx[places]
        enough = prompts >= FEWEST
        total = np.where(enough & (xx > 0), xx, np.nan)
        slope = self._xy[row, places] / total
        squares = self._xy2[row, places] - 2 * slope * self._xyxx[row, places] + slope**2 * self._xx2[places]
        correction = prompts / np.maximum(prompts - 1, 1)
        error = np.sqrt(np.maximum(squares, 0.0) * correction) / total
        half = stats.t.ppf(1 - level / 2, np.maximum(prompts - 1, 1)) * error
        return slope, slope - half, slope + half


def centered(values: Floats, starts: Any) -> Floats:
    """Values minus the mean of their prompt: [answers, columns]."""
    import numpy as np

    counts = np.diff(np.append(starts, len(values)))
    means = np.add.reduceat(values, starts, axis=0) / counts[:, None]
    centered: Floats = values - np.repeat(means, counts, axis=0)
    return np.where(np.abs(centered) < 1e-12, 0.0, centered)
