"""How a metric follows a number that varies between cells: one linear contrast for each prompt and
seed, whose mean has an interval over both (`crossed`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from alignkit_plugins.cells import crossed
from alignkit_plugins.cells.crossed import Array
from alignkit_plugins.text.readable import estimate_text

FEWEST = 3  # values that make a trend
WIDE = 8  # the largest value by the smallest, from which a trend is over doublings


def numbers_of(variants: Sequence[Mapping[str, str]], without: str) -> dict[str, dict[str, float]]:
    """The number of each variant by its name, under what it is, if a number is all that varies.
    variants: the values of axes. without: an axis that does not count.
    """
    found = dict[str, dict[str, float]]()
    for values in variants:
        for key, value in values.items():
            if key != without:
                try:
                    found.setdefault(key, {})[value] = float(value)
                except ValueError:
                    return {}
    ((key, numbers), *others) = [*found.items()] or [("", {})]
    usable = np.isfinite([*numbers.values()]).all() and len({*numbers.values()}) >= FEWEST
    return {key: numbers} if usable and not others else {}


def slope(values: Array, at: Sequence[float]) -> Array:
    """The least-squares slopes [prompts, seeds] of values [cells, prompts, seeds] over numbers
    [cells].
    """
    apart = np.array(at) - np.mean(at)
    return np.asarray(np.tensordot(apart / (apart**2).sum(), values, 1))


def trend(
    grid: Mapping[str, Array], at: Mapping[str, float], key: str, metric: str, percent: bool
) -> Iterator[str]:
    """What a metric does as a number grows, in a sentence. grid: values [prompts, seeds] of each
    policy. at: the number of each policy. key: what the number is.
    """
    known = [name for name in at if name in grid]
    if len(known) < FEWEST or grid[known[0]].shape[1] < 2:
        return
    numbers, per = [at[name] for name in known], f"for each 1 more of {key}"
    if min(numbers) > 0 and max(numbers) >= WIDE * min(numbers):
        numbers, per = list(np.log2(numbers)), f"for each doubling of {key}"
    found = crossed.intervals(slope(np.stack([grid[name] for name in known]), numbers)[None], False)
    mean, half = float(found.middle[0]), float(found.half[0])
    ends: dict[str, Any] = {"mean": mean, "low": mean - half, "high": mean + half}
    text = estimate_text(ends, sign=True, percent=percent).replace("%", " points")
    verb = "has no clear trend"
    if abs(mean) > half:
        verb = "rises" if mean > 0 else "falls"
    yield f"{metric} {verb}: {text} {per}, not adjusted"
