"""How a metric follows a number that varies between cells, by one contrast for each prompt and seed,
whose mean has an interval over both (`crossed`): a linear one, and the fall from a turning point.

A turning point that is chosen by what it is tested by looks too good. For each seed, half of the
prompts choose it with the other seeds, and the other half tests the rise to it and the fall from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from alignkit import seeds
from alignkit.evaluation.statistics import interval_text
from alignkit_plugins.cells import crossed
from alignkit_plugins.cells.crossed import Array

FEWEST = 3  # values that make a trend; seeds, of which one is left out
TURNING = 4  # values that make a turning point; prompts, of which half choose it
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
    mean, half, text = _estimate(slope(np.stack([grid[name] for name in known]), numbers), percent)
    verb = "has no clear trend"
    if abs(mean) > half:
        verb = "rises" if mean > 0 else "falls"
    yield f"{metric} {verb}: {text} {per}, not adjusted"


def turn(
    grid: Mapping[str, Array],
    at: Mapping[str, float],
    key: str,
    metric: str,
    percent: bool,
    lower: bool,
) -> Iterator[str]:
    """Where a metric that gets better as a number grows starts to get worse, in a sentence, if both
    are clear: up to there, and from there to the largest number. See `trend`. lower: whether lower
    values are better.
    """
    known = sorted(filter(grid.__contains__, at), key=at.__getitem__)
    if len(known) < TURNING:
        return
    values = np.stack([grid[name] for name in known])
    _, prompts, runs = values.shape
    if prompts < TURNING or runs < FEWEST:
        return
    choose = _half(prompts)
    places, rest = chosen(values[:, choose], lower), values[:, ~choose]
    best = np.stack([rest[place, :, run] for run, place in enumerate(places)], 1)
    texts, clear = list[str](), list[bool]()
    for part, gains in ((best - rest[0], not lower), (rest[-1] - best, lower)):
        mean, half, text = _estimate(part, percent)
        texts.append(text)
        clear.append(mean > half if gains else mean < -half)
    if not all(clear):
        yield f"{metric} has no clear turning point in {key}"
        return
    votes = Counter(places).most_common()
    by = ", ".join(f"{at[known[place]]:g} {count}x" for place, count in votes)
    yield (
        f"{metric} turns at {key}={at[known[votes[0][0]]]:g} (chosen by half of the prompts with the "
        f"other seeds: {by}): {texts[0]} up to it, {texts[1]} from there to {at[known[-1]]:g}, by the "
        "other half, not adjusted"
    )


def chosen(values: Array, lower: bool) -> list[int]:
    """For each seed, the place of the best cell by the other seeds. values: [cells, prompts, seeds]."""
    places = list[int]()
    for run in range(values.shape[-1]):
        means = [float(np.delete(own, run, 1).mean()) for own in values]
        places.append(means.index(min(means) if lower else max(means)))
    return places


def _half(count: int) -> Any:
    """The prompts that choose, as a mask: one of each two neighbors, as sources and metrics follow
    each other.
    """
    drawn = seeds.stream(0, "turning point").integers(0, 2, count // 2)
    found = np.zeros(count, bool)
    found[2 * np.arange(count // 2) + drawn] = True
    return found


def _estimate(contrast: Array, percent: bool) -> tuple[float, float, str]:
    """The mean of values [prompts, seeds], half its interval, and both in words."""
    found = crossed.intervals(contrast[None], False)
    mean, half = float(found.middle[0]), float(found.half[0])
    ends = {"mean": mean, "low": mean - half, "high": mean + half}
    return mean, half, interval_text(ends, sign=True, percent=percent)
