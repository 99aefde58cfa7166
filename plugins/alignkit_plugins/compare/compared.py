"""A policy's scores against those of a baseline, on the same prompts: averages, differences, wins.

A prompt is the unit of all statistics, because samples of one prompt are not independent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.data.group import Group, Response, length
from alignkit.evaluation import statistics
from alignkit_plugins.compare.comparison import answers_of, unit_of


@dataclass(frozen=True)
class Average:
    """A policy's averages over its scored answers to one prompt. length: in tokens. unit: see
    `unit_of`.
    """

    score: float
    length: float
    unit: Any = None


def averages(groups: Sequence[Group], policy: str, score: str) -> list[Average | None]:
    """A policy's averages at each prompt; None if no answer has this score."""
    return [_average(answers_of(group, policy), score, unit_of(group)) for group in groups]


def scores_of(averages: Sequence[Average | None]) -> tuple[list[float], list[Any]]:
    """The scores of those that are known, and their units, for `Scale.mean`."""
    known = [one for one in averages if one is not None]
    return [one.score for one in known], [one.unit for one in known]


@dataclass(frozen=True)
class Scale:
    """How a score is averaged. levels: the two values of a binary score, else None. samples: per
    prompt.
    """

    levels: tuple[float, float] | None
    samples: int

    def mean(
        self, values: Sequence[float], units: Sequence[Any] | None = None
    ) -> statistics.Estimate:
        """The mean of averages at prompts, with its interval. units: of each, see `unit_of`."""
        draws = statistics.clustered(values, units or [None] * len(values))
        levels, samples = self.levels, self._samples(len(values), draws)
        found = statistics.rate(draws, samples, levels) if levels else statistics.estimate(draws)
        return {**found, "n": len(values)}

    def difference(
        self, ours: Sequence[float], theirs: Sequence[float], units: Sequence[Any] | None = None
    ) -> statistics.Difference:
        """The mean difference of averages at the same prompts, with its interval."""
        found = statistics.differences(ours, theirs)
        draws = statistics.clustered(found, units or [None] * len(found))
        zeros, samples = [0.0] * len(draws), self._samples(len(found), draws)
        if self.levels:
            known = statistics.paired_rates(draws, zeros, samples, self.levels)
        else:
            known = statistics.paired_difference(draws, zeros)
        return {
            **known,
            "n": len(found),
            "p": statistics.clustered_p(found, units or [None] * len(found)),
        }

    def _samples(self, prompts: int, units: Sequence[float]) -> int:
        """How many each independent draw has."""
        return self.samples * math.ceil(prompts / max(1, len(units)))


def scale_of(groups: Sequence[Group], score: str) -> Scale:
    """The scale of a score, by the answers of all policies."""
    counts = Counter(
        (number, r.source) for number, group in enumerate(groups) for r in group.responses
    )
    known = [
        value for group in groups for r in group.responses if (value := r.scores[score]) is not None
    ]
    return Scale(statistics.levels_of(known), max(counts.values(), default=1))


def compare(
    groups: Sequence[Group],
    policy: str,
    baseline: str,
    name: str,
    *,
    metric: bool = False,
    lower: bool = False,
) -> dict[str, Any]:
    """A policy against the baseline by one reward, over the prompts at which both have a score.

    metric: by a metric, of which nothing is said at equal length: it finds words or answers, and no
    length fools it. lower: whether lower scores are better. Differences keep the sign of the
    scores; a win is the better score. unpaired: prompts that lack a score. at_equal_length: see
    `statistics`. win_rate: among the prompts without a tie, as in a sign test, because its interval
    needs independent wins and losses.
    """
    both = zip(averages(groups, policy, name), averages(groups, baseline, name), strict=True)
    pairs = [(ours, theirs) for ours, theirs in both if ours is not None and theirs is not None]
    scores = [ours.score for ours, _ in pairs], [theirs.score for _, theirs in pairs]
    differences = statistics.differences(*scores)
    longer = [ours.length - theirs.length for ours, theirs in pairs]
    above, below = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    wins, losses = (below, above) if lower else (above, below)
    lengths, units = [theirs.length for _, theirs in pairs], [ours.unit for ours, _ in pairs]
    decided = dict[Any, list[float]]()
    for place, (gap, unit) in enumerate(zip(differences, units, strict=True)):
        if gap:
            decided.setdefault(place if unit is None else unit, []).append(
                float((gap < 0) == lower)
            )
    return {
        "difference": scale_of(groups, name).difference(*scores, units),
        "at_equal_length": None
        if metric
        else statistics.at_equal_length(differences, longer, lengths, units),
        "win_rate": statistics.clustered_share(list(decided.values())),
        "wins": wins,
        "losses": losses,
        "ties": len(pairs) - wins - losses,
        "unpaired": len(groups) - len(pairs),
    }


def _average(answers: Sequence[Response], score: str, unit: Any) -> Average | None:
    scored = [
        (value, length(response))
        for response in answers
        if (value := response.scores[score]) is not None
    ]
    if not scored:
        return None
    values, lengths = zip(*scored, strict=True)
    return Average(statistics.mean(values), statistics.mean(lengths), unit)
