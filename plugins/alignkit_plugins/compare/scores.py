"""Scores of policies on the same prompts, as one table, and the comparison of policies by it.

A prompt is the unit of all statistics, because samples of one prompt are not independent.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any, NamedTuple

from alignkit.contract.reward import Reward
from alignkit.data.group import Group, length
from alignkit.evaluation import statistics
from alignkit_plugins.compare.comparison import answers_of, units_of
from alignkit_plugins.compare.rows import BASE_MODEL, COIN, Row

# In files: the name of a second score, which says who is better at an example
OUTCOME = "{}, of this example"
NORMAL = NormalDist()


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
    ) -> Mapping[str, Any]:
        """The mean difference of averages at the same prompts, with its interval and `p`."""
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


@dataclass(frozen=True)
class Measure:
    """What a score means.

    Attributes:
        kind: As in Row.
        scale: How scores are averaged; default: as rates if all are 0 or 1, those of a policy for
            its mean.
        lower: Whether lower scores are better.
        percent: Whether scores are shares; default: whether all are 0 or 1.
        tested: As in Row.
        trained_on: As in Row, by policy.
        parts: Of a composite, how much each metric counts.
        margin: As in Row.
    """

    kind: str = "metric"
    scale: Scale | None = None
    lower: bool = False
    percent: bool | None = None
    tested: bool = False
    trained_on: Mapping[str, bool | None] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)
    margin: float = 0.0


class Score(NamedTuple):
    """How a policy scores at a prompt, by a metric.

    Attributes:
        metric: Its name in tables.
        policy: Whose answers they are.
        prompt: The prompt's key, see `keys_of`.
        value: The mean of the answers; None without one that has a score.
        unit: What the prompt is drawn together with, see `units_of`; None if nothing.
        seed: Of the run.
        length: The mean length of these answers, in tokens; None if it is not known.
        outcome: What says who is better at the prompt; default: the value.
        missing: Answers that have no score because scoring failed.
    """

    metric: str
    policy: str
    prompt: str
    value: float | None
    unit: Any = None
    seed: int = 0
    length: float | None = None
    outcome: float | None = None
    missing: int = 0

    @property
    def better(self) -> float | None:
        """What says who is better at the prompt."""
        return self.value if self.outcome is None else self.outcome


Prompt = tuple[str, Any]  # key and unit, as in Score


@dataclass(frozen=True)
class Scores:
    """A table with a row for each prompt, policy and metric.

    measures: what the metrics mean, by name; default: what Measure says.
    """

    measures: dict[str, Measure] = field(default_factory=dict)
    rows: list[Score] = field(default_factory=list)

    def add(
        self, metric: str, values: Mapping[str, Sequence[float | None]], prompts: Iterable[Prompt]
    ) -> None:
        """Add a metric. values: of each policy, at each prompt."""
        for policy, own in values.items():
            for (prompt, unit), value in zip(prompts, own, strict=True):
                self.rows.append(Score(metric, policy, prompt, value, unit))

    def combine(self) -> None:
        """Add composites, and put metrics into the order of the measures, in which they decide.
        Composites are sums of weighted means over different prompts, of which each
        metric needs two. What decides at a prompt is what its own score adds.

        The mean of their values is that sum, and the variance / n is its variance: the sum of those
        of the parts (Cochran 1977, "Sampling techniques", section 5.3).
        """
        known, combined = dict[tuple[str, int, str], list[float]](), list[Score]()
        for one in self.rows:
            if one.value is not None:
                known.setdefault((one.policy, one.seed, one.metric), []).append(one.value)
        means = {key: statistics.mean(values) for key, values in known.items()}
        for name, measure in self.measures.items():
            for one in self.rows:
                run = one.policy, one.seed
                counts = [len(known.get((*run, metric), ())) for metric in measure.parts]
                share = measure.parts.get(one.metric)
                if one.value is None or share is None or min(counts) < 2:
                    continue
                whole = 0.0
                for metric, part in measure.parts.items():
                    whole += part * means[(*run, metric)]
                n, count = sum(counts), len(known[(*run, one.metric)])
                # The variance counts one too few for all values, not for each part
                wider = math.sqrt(n * (n - 1) / count / (count - 1))
                value = whole + share * wider * (one.value - means[(*run, one.metric)])
                place, added = f"{one.metric} {one.prompt}", share * one.value
                new = Score(name, one.policy, place, value, one.unit, one.seed, outcome=added)
                combined.append(new)
        order = {name: place for place, name in enumerate(self.measures)}
        self.rows[:] = sorted([*self.rows, *combined], key=lambda one: order[one.metric])


def average(values: Iterable[float | None]) -> float | None:
    """The mean of those that are known; None if none is."""
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def keys_of(groups: Iterable[Group]) -> list[str]:
    """A key for each prompt or example, the same in all runs; equal ones are numbered."""
    counts, keys = Counter[str](), list[str]()
    for group in groups:
        counts[group.id] += 1
        keys.append(f"{group.id} {counts[group.id]}")
    return keys


def prompts_in(groups: Sequence[Group]) -> list[Prompt]:
    """The prompts of groups, as `Scores.add` takes them."""
    return list(zip(keys_of(groups), units_of(groups), strict=True))


def scores_of(
    groups: Sequence[Group], policies: Iterable[str], measures: Mapping[str, Measure]
) -> Scores:
    """The table of scored answers. Those that are no part of a metric do not have its score."""
    table, prompts = Scores(dict(measures)), prompts_in(groups)
    for name in measures:
        own = OUTCOME.format(name)
        for policy in policies:
            for group, (prompt, unit) in zip(groups, prompts, strict=True):
                answers = answers_of(group, policy)
                scored = [one for one in answers if one.scores.get(name) is not None]
                row = Score(
                    name,
                    policy,
                    prompt,
                    average(one.scores[name] for one in scored),
                    unit,
                    length=average(map(length, scored)),
                    outcome=average(one.scores.get(own) for one in scored),
                    missing=sum(name in one.scores for one in answers) - len(scored),
                )
                table.rows.append(row)
    table.combine()
    return table


def scale_of(
    groups: Sequence[Group], score: str, bounds: tuple[float, float] = Reward.bounds
) -> Scale:
    """The scale of a score, by the answers of all policies. bounds: as in Scale."""
    counts, values = Counter[Any](), list[float]()
    for number, group in enumerate(groups):
        for response in group.responses:
            counts[number, response.source] += 1
            value = response.scores.get(score)
            if value is not None:
                values.append(value)
    levels = bounds if values and {*values} <= {*bounds} else statistics.levels_of(values)
    return Scale(levels, max(counts.values(), default=1), bounds)


# The comparison


def compare(
    scores: Scores,
    baseline: str | None = None,
    compared: Sequence[str] | None = None,
    base: str | None = None,
) -> list[Row]:
    """A row for each policy by each metric: its mean, and its paired difference from the baseline.

    Prompts that lack a value count for nothing. Differences keep the sign of the values; a win is
    the better one. What judges prefer has rows only of policies that are compared.

    Args:
        scores: Of all policies.
        baseline: One of the policies.
        compared: The policies that are compared with it; default: all others.
        base: The base model, with which they are compared as well, by metrics.
    """
    tables, rows = dict[str, dict[str, list[Score]]](), list[Row]()
    for score in scores.rows:
        tables.setdefault(score.metric, {}).setdefault(score.policy, []).append(score)
    for metric, table in tables.items():
        measure = scores.measures.get(metric, Measure())
        scale = measure.scale or _scale_of_values(itertools.chain(*table.values()))
        percent = measure.percent
        if percent is None:
            percent = scale.levels == (0.0, 1.0)
        others = table if compared is None else compared
        for policy, every in table.items():
            known = [score for score in every if score.value is not None]
            own = measure.scale or _scale_of_values(known)
            mean = own.mean(_column(known, "value"), _column(known, "unit"))
            row = Row(
                policy,
                metric,
                measure.kind,
                statistics.of_share(mean) if percent and not measure.parts else mean,
                percent=percent,
                lower=measure.lower,
                margin=measure.margin,
                trained_on=measure.trained_on.get(policy),
                tested=measure.tested,
                missing=sum(score.missing for score in every),
            )
            if baseline in table and policy in others and policy != baseline:
                rows.append(_against(row, baseline, table, scale, own))
                if measure.kind == "metric" and base in table and base not in (baseline, policy):
                    over_base = _against(row, base, table, scale, own)
                    rows.append(replace(over_base, baseline=BASE_MODEL, win_rate={}, counts=""))
            elif measure.kind != "judge":
                rows.append(row)
    written = {(row.policy, row.metric, row.baseline): row for row in rows}
    for place, row in enumerate(rows):
        measure = scores.measures.get(row.metric, Measure())
        if measure.parts:
            rows[place] = _with_intervals(row, measure, written)
    return rows


def _with_intervals(row: Row, measure: Measure, written: Mapping[Any, Row]) -> Row:
    """A composite's row, with the intervals that follow from those of its metrics, which allow for
    rates of 0. written: rows by policy, metric and baseline.
    """
    parts = list[tuple[float, Row]]()
    for metric, share in measure.parts.items():
        parts.append((share, written[row.policy, metric, row.baseline]))
    whole = _of_sum(row.estimate, [(share, one.estimate) for share, one in parts])
    if row.percent:
        whole = statistics.of_share(whole, least=-1.0)
    apart = [(share, one.difference) for share, one in parts]
    return replace(row, estimate=whole, difference=_of_sum(row.difference, apart))


def _of_sum(found: Any, parts: Iterable[tuple[float, Mapping[str, Any]]]) -> Any:
    """An estimate of a weighted sum of means, with its interval widened to the one that follows from
    theirs if they are independent: an end is as far away as the root of the squares of the parts'
    distances (Zou and Donner 2008, "Construction of confidence limits about effect measures: a
    general approach", equation 6). Its own is wider where parts are of the same prompts.

    parts: each with its weight. One without an interval changes nothing.
    """
    below, above = 0.0, 0.0
    for weight, part in parts:
        if part.get("low") is None or part.get("high") is None:
            return found
        low, high = sorted(weight * (part[end] - part["mean"]) for end in ("low", "high"))
        below, above = below + low**2, above + high**2
    mean = found["mean"]
    low, high = mean - math.sqrt(below), mean + math.sqrt(above)
    if found["low"] is not None:
        low, high = min(low, found["low"]), max(high, found["high"])
    return _no_surer({**found, "low": low, "high": high})


def _no_surer(found: Any) -> Any:
    """A difference whose p value is at least the one at which its interval would end at 0."""
    mean, low, high = (found.get(end) for end in ("mean", "low", "high"))
    if "p" not in found or None in (low, high):
        return found
    reach = mean - low if mean > 0 else high - mean
    if not reach:
        return found
    end = NORMAL.inv_cdf((1 - statistics.CONFIDENCE) / 2)
    return {**found, "p": max(found["p"], 2 * NORMAL.cdf(end * abs(mean) / reach))}


def _scale_of_values(scores: Iterable[Score]) -> Scale:
    return Scale(statistics.levels_of([one.value for one in scores if one.value is not None]))


def _column(scores: Iterable[Score], name: str) -> list[Any]:
    return [getattr(score, name) for score in scores]


def _against(
    row: Row, baseline: str, table: Mapping[str, Sequence[Score]], scale: Scale, own: Scale
) -> Row:
    """The row with its difference from the baseline, at the prompts where both have a value.

    scale: of both, and own: of the policy's values.
    """
    there = {(score.prompt, score.seed): score for score in table[baseline]}
    us, them = list[Score](), list[Score]()
    for score in table[row.policy]:
        other = there.get((score.prompt, score.seed))
        if other is not None and None not in (score.value, other.value):
            us.append(score)
            them.append(other)
    units, ours, theirs = _column(us, "unit"), _column(us, "value"), _column(them, "value")
    gaps = statistics.differences(ours, theirs)
    difference = scale.difference(ours, theirs, units)
    if scale.levels is None and own.levels is not None and len(set(theirs)) == 1:
        # Such as 50% of pairs for a base model, which prefers neither: only the policy varies.
        apart = Scale((own.levels[0] - theirs[0], own.levels[1] - theirs[0]), own.samples)
        difference = _no_surer({**difference, **apart.mean(gaps, units)})
    equal_length: Any = None
    lengths, shorter = _column(us, "length"), _column(them, "length")
    # A metric finds words or answers, and no length fools it.
    if row.kind != "metric" and None not in (*lengths, *shorter):
        longer = statistics.differences(lengths, shorter)
        equal_length = statistics.at_equal_length(gaps, longer, shorter, units)
    if row.kind == "judge" and equal_length:
        equal_length = shifted(equal_length, COIN)
    won, decided = list[float](), list[Any]()
    better = statistics.differences(_column(us, "better"), _column(them, "better"))
    for gap, unit in zip(better, units, strict=True):
        if gap:
            won.append(float((gap < 0) == row.lower))
            decided.append(unit)
    return replace(
        row,
        baseline=baseline,
        difference=difference,
        equal_length=equal_length or {},
        win_rate=statistics.clustered_share(won, decided) or {},
        counts=f"{won.count(1)}/{won.count(0)}/{len(us) - len(won)}",
    )


def shifted(estimate: Mapping[str, Any], by: float) -> dict[str, Any]:
    """The mean and the interval of an estimate, moved."""
    moved = dict[str, Any]()
    for end in ("mean", "low", "high"):
        value = estimate.get(end)
        if value is not None:
            moved[end] = value + by
    return moved
