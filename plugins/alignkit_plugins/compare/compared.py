"""The one paired estimate: policies' scores on the same prompts, and how far each is from a
baseline's.

A prompt is the unit of all statistics, because samples of one prompt are not independent.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alignkit.data.group import Group, Response, length, responses_of
from alignkit.evaluation import statistics
from alignkit.reward import Reward
from alignkit_plugins.compare.comparison import answers_of, units_of
from alignkit_plugins.compare.rows import BASE_MODEL, Row

Values = Sequence[float | None]  # a policy's, one for each prompt
ITS_OWN = "{}, of this example"  # score whose value depends on no other example


@dataclass(frozen=True)
class Scale:
    """How a score is averaged. levels: the two values of a binary score, else None. samples: per
    prompt. bounds: the lowest and the highest score.
    """

    levels: tuple[float, float] | None
    samples: int = 1
    bounds: tuple[float, float] = Reward.bounds

    def mean(self, values: Sequence[float], units: Sequence[Any]) -> statistics.Estimate:
        """The mean of averages at prompts, with its interval. units: of each, see `units_of`."""
        draws = statistics.clustered(values, units)
        if self.levels is None:
            least, most = self.bounds
            return statistics.of_share(statistics.estimate(draws), most, least)
        return statistics.rate(draws, self._samples(len(values), draws), self.levels)

    def difference(
        self, ours: Sequence[float], theirs: Sequence[float], units: Sequence[Any]
    ) -> statistics.Difference:
        """The mean difference of averages at the same prompts, with its interval."""
        gaps = statistics.differences(ours, theirs)
        draws = statistics.clustered(gaps, units)
        zeros = [0.0] * len(draws)
        if self.levels is None:
            difference = statistics.paired_difference(draws, zeros)
        else:
            samples = self._samples(len(ours), draws)
            difference = statistics.paired_rates(draws, zeros, samples, self.levels)
        return {**difference, "p": statistics.clustered_p(gaps, units)}

    def _samples(self, prompts: int, draws: Sequence[float]) -> int:
        """How many each independent draw has."""
        return self.samples * math.ceil(prompts / max(1, len(draws)))


def compared(
    metric: str,
    values: Mapping[str, Values],
    baseline: str | None = None,
    *,
    compare: Sequence[str] | None = None,
    base: str | None = None,
    kind: str = "metric",
    scale: Scale | None = None,
    units: Sequence[Any] | None = None,
    lengths: Mapping[str, Values] | None = None,
    outcomes: Mapping[str, Values] | None = None,
    percent: bool | None = None,
    trained_on: Mapping[str, bool | None] | None = None,
    **facts: Any,
) -> list[Row]:
    """A row for each policy by one metric: its mean, and its paired difference from the baseline.

    Prompts that lack a value count for nothing. Differences keep the sign of the values; a win is
    the better value.

    Args:
        metric: The name in tables.
        values: For each policy, a number for each prompt, None without one.
        baseline: One of the policies.
        compare: The policies that are compared with it; default: all others.
        base: The base model, with which they are compared as well.
        kind: As in Row.
        scale: How values are averaged; default: as rates if all are 0 or 1, those of a policy for
            its mean.
        units: One for each prompt, see `units_of`; default: each is one.
        lengths: The lengths of each policy's answers, for the difference at equal length; default:
            nothing is said of that.
        outcomes: What says who is better at a prompt, if not the values.
        percent: Whether values are shares; default: whether all are 0 or 1.
        trained_on: As in Row, by policy.
        facts: Others of Row, which all rows have.
    """
    rows = []
    everything = scale or Scale(statistics.levels_of(_known(*values.values())))
    if percent is None:
        percent = everything.levels == (0.0, 1.0)
    units = units or [None] * len(next(iter(values.values())))
    for policy, ours in values.items():
        own = scale or Scale(statistics.levels_of(_known(ours)))
        scored = [unit for unit, value in zip(units, ours, strict=True) if value is not None]
        mean = own.mean(_known(ours), scored)
        if percent:
            mean = statistics.of_share(mean)
        row = Row(policy, metric, kind, mean, percent=percent, **facts)
        row = replace(row, trained_on=(trained_on or {}).get(policy))
        others = values if compare is None else compare
        if baseline is not None and policy in others and policy != baseline:
            sides = values, (everything, own), units, outcomes or values
            rows.append(_against(row, baseline, *sides, lengths))
            if base not in (None, baseline, policy):
                over_base = _against(row, base, *sides)
                rows.append(replace(over_base, baseline=BASE_MODEL, win_rate={}, counts=""))
        else:
            rows.append(row)
    return rows


def _known(*values: Values) -> list[float]:
    return [value for value in itertools.chain(*values) if value is not None]


def _against(
    row: Row,
    baseline: str,
    values: Mapping[str, Values],
    scales: tuple[Scale, Scale],
    units: Sequence[Any],
    outcomes: Mapping[str, Values],
    lengths: Mapping[str, Values] | None = None,
) -> Row:
    """The row with its difference from the baseline, at the prompts where both have a value.

    scales: of both, and of the policy's values.
    """
    scale, own = scales
    both = list[int]()
    for place, pair in enumerate(zip(values[row.policy], values[baseline], strict=True)):
        if None not in pair:
            both.append(place)

    def at(every: Sequence[Any]) -> list[Any]:
        return [every[place] for place in both]

    ours, theirs, shared = at(values[row.policy]), at(values[baseline]), at(units)
    difference = scale.difference(ours, theirs, shared)
    if scale.levels is None and own.levels is not None and len(set(theirs)) == 1:
        # Such as 50% of pairs for a base model, which prefers neither: only the policy varies.
        apart = Scale((own.levels[0] - theirs[0], own.levels[1] - theirs[0]), own.samples)
        difference = {**difference, **apart.mean(statistics.differences(ours, theirs), shared)}
    equal_length: Any = None
    if lengths is not None:
        short = at(lengths[baseline])
        longer = statistics.differences(at(lengths[row.policy]), short)
        differences = statistics.differences(ours, theirs)
        equal_length = statistics.at_equal_length(differences, longer, short, shared)
    gaps = statistics.differences(at(outcomes[row.policy]), at(outcomes[baseline]))
    won = wins(gaps, shared, row.lower)
    more = {"difference": difference, "equal_length": equal_length or {}, **won}
    return replace(row, baseline=baseline, **more)


def wins(gaps: Sequence[float], units: Sequence[Any], lower: bool = False) -> dict[str, Any]:
    """`win_rate` and `counts` of Row. gaps: how much higher the policy scores at each prompt.
    units: see `units_of`. lower: whether lower scores are better.
    """
    won, decided = list[float](), list[Any]()
    for gap, unit in zip(gaps, units, strict=True):
        if gap:
            won.append(float((gap < 0) == lower))
            decided.append(unit)
    counts = f"{won.count(1)}/{won.count(0)}/{len(gaps) - len(won)}"
    return {"win_rate": statistics.clustered_share(won, decided) or {}, "counts": counts}


# Answers with scores


def averages(groups: Sequence[Group], policy: str, score: str) -> list[float | None]:
    """The mean score of a policy's answers at each prompt; None if no answer has this score."""
    return _means(groups, policy, score, lambda response: response.scores[score])


def lengths_of(groups: Sequence[Group], policy: str, score: str) -> list[float | None]:
    """The mean length in tokens of a policy's answers that have a score."""
    return _means(groups, policy, score, length)


def _means(
    groups: Sequence[Group], policy: str, score: str, measure: Callable[[Response], Any]
) -> list[float | None]:
    means = list[float | None]()
    for group in groups:
        scored = [r for r in answers_of(group, policy) if r.scores.get(score) is not None]
        means.append(statistics.mean(list(map(measure, scored))) if scored else None)
    return means


def has_score(groups: Sequence[Group], score: str) -> bool:
    """Whether any response has a score of this name."""
    return any(score in response.scores for response in responses_of(groups))


def scale_of(
    groups: Sequence[Group], score: str, bounds: tuple[float, float] = Reward.bounds
) -> Scale:
    """The scale of a score, by the answers of all policies. bounds: as in Scale."""
    counts, values = Counter[Any](), list[float | None]()
    for number, group in enumerate(groups):
        for response in group.responses:
            counts[number, response.source] += 1
            values.append(response.scores.get(score))
    levels = statistics.levels_of(_known(values))
    return Scale(levels, max(counts.values(), default=1), bounds)


def rated(
    groups: Sequence[Group],
    policies: Sequence[str],
    baseline: str | None,
    score: str,
    *,
    kind: str = "reward",
    **more: Any,
) -> list[Row]:
    """The rows of policies by a score of their answers, whose samples at a prompt are averaged
    first.

    A score is missing if it is there and None; answers that are no part of a metric do not have it.
    Of an example, ITS_OWN score says who is better. Nothing is said of metrics at equal length:
    they find words or answers, and no length fools them. more: of `compared`.
    """
    own, missing = ITS_OWN.format(score), Counter[str]()
    values, outcomes, lengths = dict[str, Values](), dict[str, Values](), dict[str, Values]()
    for policy in policies:
        values[policy] = averages(groups, policy, score)
        outcomes[policy] = averages(groups, policy, own)
        lengths[policy] = lengths_of(groups, policy, score)
    for response in responses_of(groups):
        missing[str(response.source)] += response.scores.get(score, 0.0) is None
    if has_score(groups, own):
        more["outcomes"] = outcomes
    if kind == "reward":
        more["lengths"] = lengths
    more = {"scale": scale_of(groups, score), "units": units_of(groups), **more}
    rows = compared(score, values, baseline, kind=kind, **more)
    return [replace(row, missing=missing[row.policy]) for row in rows]
