"""Pairs of people's preferences, and how often raters make the same choice; a prompt is the unit of
all intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alignkit import Group, Response
from alignkit import functional as F
from alignkit.data.group import resolved_pairs
from alignkit_plugins.compare.comparison import units_of, words_of
from alignkit_plugins.compare.rows import Row
from alignkit_plugins.compare.scores import Measure, Scale, Scores, average, compare
from alignkit_plugins.text.spoken import all_turns

Gaps = Sequence[float | None]  # by choice: how much higher the better response scores


@dataclass(frozen=True)
class Choice:
    """A pair with a better response.

    better, worse: by people; p: how likely that is. margin: how much better it is, as the data say
    it. prompt, unit: of all choices with the same one, see `units_of`.
    """

    group: Group
    prompt: str
    unit: int
    better: Response
    worse: Response
    p: float
    margin: Any

    @property
    def longer(self) -> int:
        """How many characters the better response is longer."""
        return len(all_turns(self.better)) - len(all_turns(self.worse))


def choices(groups: Sequence[Group]) -> list[Choice]:
    """All pairs, in order, without those that the data call a tie. One with `p` below 0.5 is turned
    around.

    Many data sets have a row per pair, so that rows share a prompt.
    """
    found = []
    for unit, group in zip(units_of(groups), groups, strict=True):
        for pair in resolved_pairs(group):
            better, worse = group.responses[pair.better], group.responses[pair.worse]
            if pair.p < 0.5:
                better, worse = worse, better
            if pair.p != 0.5:
                p = max(pair.p, 1 - pair.p)
                found.append(Choice(group, words_of(group), unit, better, worse, p, pair.margin))
    return found


def gaps(pairs: Iterable[Choice], column: str) -> list[float | None]:
    """The difference of each pair by a score; 0 if it is only rounding, None if a score is missing."""
    found: list[float | None] = []
    for pair in pairs:
        chosen, rejected = pair.better.scores[column], pair.worse.scores[column]
        if chosen is None or rejected is None:
            found.append(None)
        else:
            found.append(0.0 if F.nearly_equal(chosen, rejected) else chosen - rejected)
    return found


def accuracy(
    pairs: Sequence[Choice],
    raters: Mapping[str, Gaps],
    places: Iterable[int] | None = None,
    **facts: Any,
) -> list[Row]:
    """How often each rater finds the better response better; a tie is wrong, as in RewardBench.

    Lambert et al. 2024, arXiv:2403.13787, section 4. The pairs of a prompt are averaged first, also
    if they are in several rows. Counts are of pairs that are right, wrong, and equal.

    Args:
        pairs: All pairs.
        raters: What each rater makes of them.
        places: The places of the pairs that count; default: all.
        facts: Columns of the rows.
    """
    prompts: dict[str, list[int]] = {}
    for place in range(len(pairs)) if places is None else places:
        prompts.setdefault(pairs[place].prompt, []).append(place)
    units = [(prompt, pairs[same[0]].unit) for prompt, same in prompts.items()]
    rows = []
    for rater, gaps in raters.items():
        values, most, known = list[float | None](), 1, list[float]()
        for same in prompts.values():
            there = [gap for gap in map(gaps.__getitem__, same) if gap is not None]
            known += there
            values.append(average(float(gap > 0) for gap in there))
            most = max(most, len(there))
        measure = Measure("reward", Scale((0.0, 1.0), most), percent=True)
        scores = Scores({"accuracy": measure})
        scores.add("accuracy", {rater: values}, units)
        (row,) = compare(scores)
        right, tied = sum(gap > 0 for gap in known), known.count(0.0)
        counts = f"{right}/{len(known) - right - tied}/{tied}"
        missing = sum(map(len, prompts.values())) - len(known)
        rows.append(replace(row, counts=counts, missing=missing, **facts))
    return rows
