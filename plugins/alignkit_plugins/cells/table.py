"""What the cells of a recipe say together: rows like those of one evaluation, with intervals over
prompts and seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import special

from alignkit.errors import DataError
from alignkit.evaluation import statistics
from alignkit_plugins.cells import crossed
from alignkit_plugins.cells.crossed import Array, Parts, Spread
from alignkit_plugins.compare.rows import Row
from alignkit_plugins.compare.scores import Measure, Scale, Score, Scores, compare

SEED = "seed"
BASE = "base"
SAME = ("prompts", "sampling", "headline", "baseline", "policies", "measures")
OF_A_RUN = (SEED, "trained_on", "scale")  # parts of these that may differ
RIGHT_AND_WRONG = (1, 1, 0, 0)  # pseudo-prompts of a share (Agresti and Coull 1998)
ERROR = (1 - statistics.CONFIDENCE) / 2  # in each direction
LARGE = 0.25  # share of the variance that is the seeds', which more prompts do not lower

Cells = Sequence[Mapping[str, Any]]  # rows of cells (`rows.read_row`)
Evaluations = Mapping[str, Mapping[int, Mapping[str, Any]]]  # by variant and seed


@dataclass(frozen=True)
class CellTable:
    """The rows of a table, the headline first, and sentences on what they rest."""

    rows: Sequence[Row]
    headline: str
    seeds: Sequence[int]
    notes: Sequence[str]


def table_of(cells: Cells, stage: str) -> CellTable:
    """The table of the cells of an evaluation step. Raises DataError if they do not compare."""
    _check_same(cells, stage)
    variants, notes = _variants(cells, stage), list[str]()
    every = {seed for own in variants.values() for seed in own}
    seeds = sorted(every.intersection(*variants.values()))
    if not seeds:
        raise DataError("the cells have no seed in common\nhelp: run all of them with one seed")
    if left := every.difference(seeds):
        notes.append(f"left out, as not all cells have them: seeds {', '.join(map(str, left))}")
    first = next(iter(variants.values()))[seeds[0]]
    scores = _scores(variants, seeds, first)
    names = list(dict.fromkeys(one.policy for one in scores.rows))
    baseline = first["baseline"] if first["baseline"] in names else names[0]
    compared = [name for name in names if name not in (baseline, BASE)]
    if len(seeds) == 1:
        notes.append(f"one seed, {seeds[0]}: the intervals are over prompts only")
        rows = compare(scores, baseline, compared)
    else:
        rows, visible = _over_seeds(scores, first["headline"], baseline, compared)
        notes += visible
    rows = _claimed(rows, first["headline"], len(compared))
    return CellTable(rows, first["headline"], seeds, notes)


def _check_same(cells: Cells, stage: str) -> None:
    """Raise DataError if cells were not measured in the same way."""
    first = cells[0]["evaluations"][stage]
    for one in cells[1:]:
        other = one["evaluations"].get(stage, {})
        for name in SAME:
            if _comparable(first[name]) != _comparable(other.get(name)):
                text = f"{_address(cells[0])} and {_address(one)} do not compare"
                raise DataError(f"{text}: their {name} differ")


def _comparable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _comparable(one) for key, one in value.items() if key not in OF_A_RUN}
    return value


def _address(one: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in one["values"].items())


def _variants(cells: Cells, stage: str) -> Evaluations:
    """The evaluations of each variant, which all values but the seed name, by seed."""
    found = dict[str, dict[int, Mapping[str, Any]]]()
    for one in cells:
        name = ", ".join(value for key, value in one["values"].items() if key != SEED)
        own, evaluation = found.setdefault(name, {}), one["evaluations"][stage]
        if own.setdefault(one[SEED], evaluation)["scores"] != evaluation["scores"]:
            raise DataError(f"{_address(one)}: two folders have different results of it")
    return found


def _scores(variants: Evaluations, seeds: Sequence[int], first: Mapping[str, Any]) -> Scores:
    """The scores of all policies. A policy that is the same in all variants is there once; others
    are called as their variants.
    """
    measures = dict[str, Measure]()
    for name, one in first["measures"].items():
        measures[name] = Measure(**{**one, "scale": one["scale"] and Scale(**one["scale"])})
    columns = dict[str, dict[str, list[Any]]]()
    for policy in first["policies"]:
        for variant, own in variants.items():
            columns.setdefault(policy, {})[variant] = [
                _columns(own[seed], policy) for seed in seeds
            ]
    own_names = [name for name, each in columns.items() if len({*map(str, each.values())}) > 1]
    table = Scores(measures)
    for policy, each in columns.items():
        for variant, found in each.items():
            name = policy
            if policy in own_names:
                name = variant if len(own_names) == 1 else f"{policy} {variant}"
            elif variant != next(iter(variants)):
                continue
            for seed, column in zip(seeds, found, strict=True):
                for metric, values in column.items():
                    for (prompt, unit), value in zip(first["prompts"], values, strict=True):
                        if value is not None:
                            table.rows.append(Score(metric, name, prompt, value, unit, seed))
    return table


def _columns(evaluation: Mapping[str, Any], policy: str) -> dict[str, list[float | None]]:
    return {metric: each[policy] for metric, each in evaluation["scores"].items()}


# Over prompts and seeds


def _over_seeds(
    scores: Scores, headline: str, baseline: str, compared: Sequence[str]
) -> tuple[list[Row], list[str]]:
    """A row for each policy by each metric, and what the table can see by the headline."""
    rows, seen = list[Row](), list[str]()
    for metric, measure in scores.measures.items():
        arrays = _arrays([one for one in scores.rows if one.metric == metric])
        if not arrays:
            continue
        levels = measure.scale and measure.scale.levels
        theirs, gaps = arrays.get(baseline), dict[str, Array]()
        for policy in compared:
            if theirs is not None and policy in arrays:
                gaps[policy] = arrays[policy] - theirs
        spreads, found = _spreads(gaps, levels)
        if metric == headline and spreads:
            seen = _visible(found, spreads, len(compared))
        for policy, values in arrays.items():
            estimate = _estimate(values, levels)
            facts: Any = {"percent": bool(measure.percent), "lower": measure.lower}
            facts |= {"trained_on": measure.trained_on.get(policy), "tested": measure.tested}
            row = Row(policy, metric, measure.kind, estimate, **facts)
            if policy in spreads:
                difference = _difference(gaps[policy], spreads[policy], levels)
                row = replace(row, baseline=baseline, difference=difference)
            rows.append(row)
    return rows, seen


def _arrays(scores: Iterable[Score]) -> dict[str, Array]:
    """The values [prompts, seeds] of each policy, of prompts that all policies have in all seeds.
    Those of a unit, such as the questions about one passage, are one prompt.
    """
    sums = dict[str, dict[Any, dict[int, list[float]]]]()
    for one in scores:
        key = one.prompt if one.unit is None else ("unit", one.unit)
        own = sums.setdefault(one.policy, {}).setdefault(key, {})
        own.setdefault(one.seed, []).append(one.value or 0.0)
    seeds = {seed for each in sums.values() for own in each.values() for seed in own}
    keys = [
        key
        for key in next(iter(sums.values()), {})
        if all(seeds <= each.get(key, {}).keys() for each in sums.values())
    ]
    found = dict[str, Array]()
    for policy, each in sums.items():
        rows = [[statistics.mean(each[key][seed]) for seed in sorted(seeds)] for key in keys]
        if rows:
            found[policy] = np.array(rows)
    return found


def _estimate(values: Array, levels: tuple[float, float] | None) -> dict[str, Any]:
    """The mean of values and its interval."""
    drawn, mean = values, float(values.mean())
    if levels:
        bottom, top = levels
        pseudo = bottom + (top - bottom) * np.array(RIGHT_AND_WRONG, float)
        drawn = np.concatenate([values, np.repeat(pseudo[:, None], values.shape[1], 1)])
    found = crossed.parts(drawn)
    half, middle = float(crossed.half_width(crossed.spread(found))), float(found.mean)
    low, high = middle - half, middle + half
    if levels:
        low, high = max(levels[0], low), min(levels[1], high)
    return {"mean": mean, "low": low, "high": high, "n": len(values)}


def _spreads(
    gaps: Mapping[str, Array], levels: tuple[float, float] | None
) -> tuple[dict[str, Spread], Parts | None]:
    """How the mean difference of each policy varies, and the parts of all. What seeds add is
    estimated from all policies (`crossed.moderated`).
    """
    if not gaps:
        return {}, None
    width = levels[1] - levels[0] if levels else 1.0
    values = np.stack(list(gaps.values())) / width
    found = crossed.parts(crossed.with_pseudo(values) if levels else values)
    seeds, free = crossed.moderated(found.seeds, found.runs - 1)
    every = crossed.spread(found, seeds, np.broadcast_to(free, seeds.shape))
    spreads = {
        policy: Spread(every.variance[at] * width**2, every.free[at])
        for at, policy in enumerate(gaps)
    }
    return spreads, found._replace(seeds=seeds)


def _difference(gaps: Array, spread: Spread, levels: tuple[float, float] | None) -> dict[str, Any]:
    """A mean difference with its interval and the p value of the two-sided test."""
    mean, half = float(gaps.mean()), float(crossed.half_width(spread))
    middle = mean
    if levels:  # two pseudo-prompts draw it toward 0, and one seed's interval is not wider
        middle = mean * len(gaps) / (len(gaps) + 2)
        width = levels[1] - levels[0]
        pooled = statistics.paired_rates(
            list(gaps.mean(1) / width), [0.0] * len(gaps), gaps.shape[1]
        )
        if pooled["low"] is not None and pooled["high"] is not None:
            half = max(half, (pooled["high"] - pooled["low"]) / 2 * width)
    up, down = crossed.one_sided(np.asarray(middle), spread)
    ends = {"mean": mean, "low": middle - half, "high": middle + half, "n": len(gaps)}
    return {**ends, "p": min(1.0, 2 * float(min(up, down)))}


def _visible(found: Parts | None, spreads: Mapping[str, Spread], count: int) -> list[str]:
    """The smallest difference that the table could see, as a range, because few seeds say little of
    what seeds add; and what lowers it.
    """
    if found is None:
        return []
    level, free = ERROR / max(1, count), len(spreads) * (found.runs - 1)
    typical = found._replace(
        **{
            name: np.asarray(float(np.mean(getattr(found, name))))
            for name in ("mean", "prompts", "seeds", "rest")
        }
    )
    ends = list[float]()
    for tail in (1 - ERROR, ERROR):
        seeds = np.maximum(typical.rest, typical.seeds * free / special.chdtri(free, 1 - tail))
        spread = crossed.spread(typical, seeds, np.asarray(float(free)))
        ends.append(crossed.visible(spread, level))
    part = float((typical.seeds - typical.rest) / (typical.prompts + typical.seeds - typical.rest))
    what = "four times as many seeds halve that; no number of prompts does"
    if part < LARGE:
        what = "four times as many prompts about halve that"
    return [f"could see a difference of {100 * ends[0]:.0f} to {100 * ends[1]:.0f} points; {what}"]


def _claimed(rows: Sequence[Row], headline: str, count: int) -> list[Row]:
    """Rows with adjusted p values: 2.5% of error in each direction.

    Better: the policies share it equally, and one that passes by the headline has its share for the
    other metrics (Holm 1979). Worse: all policies and metrics share it equally.
    """
    better, worse = dict[str, dict[int, float]](), dict[int, float]()
    for at, row in enumerate(rows):
        if row.tested and (p := row.difference.get("p")) is not None:
            better.setdefault(row.policy, {})[at] = p if row.direction == 1 else 1.0
            worse[at] = p if row.direction == -1 else 1.0
    adjusted = {at: p for at, p in statistics.holm(worse).items() if rows[at].direction == -1}
    for own in better.values():
        head = {at: p * count for at, p in own.items() if rows[at].metric == headline}
        first = max(head.values(), default=1.0)
        others = statistics.holm({at: p for at, p in own.items() if at not in head})
        for at, p in {**head, **{at: max(first, p * count) for at, p in others.items()}}.items():
            if rows[at].direction != -1:
                adjusted[at] = min(1.0, p)
    return [replace(row, p=adjusted.get(at)) for at, row in enumerate(rows)]
