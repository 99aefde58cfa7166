"""What the cells of a recipe say together: rows like those of one evaluation, with intervals over
prompts and seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from alignkit.contract.report import Block, Report, Table
from alignkit.errors import DataError
from alignkit.evaluation import statistics
from alignkit_plugins.cells import crossed
from alignkit_plugins.cells.crossed import Array, Interval, Parts
from alignkit_plugins.cells.rows import rows_of
from alignkit_plugins.compare.rows import Row, plain
from alignkit_plugins.compare.tables import LOWER, cell
from alignkit_plugins.compare.verdicts import verdicts

SEED, BASE = "seed", "base"
SAME = ("prompts", "sampling", "headline", "baseline", "policies", "measures")
OF_A_RUN = (SEED, "trained_on", "scale")  # parts of these that may differ
MACHINE = ("processor", "threads", "dtype")  # facts of a stage on which its numbers depend
RIGHT_AND_WRONG = [[1.0], [1.0], [0.0], [0.0]]  # pseudo-prompts of a share (Agresti and Coull 1998)
ERROR = (1 - statistics.CONFIDENCE) / 2  # in each direction
LARGE = 0.25  # share of the variance that is the seeds', from which more prompts do not help
VARY = "Seeds vary what is sampled and in which order, not which rows were collected."

Cells = Sequence[Mapping[str, Any]]  # rows of cells (`rows.read_row`)
Values = dict[str, dict[str, Array]]  # by metric and policy: [prompts, seeds]


class CellTable(NamedTuple):
    """The rows of a table, and sentences on what they rest."""

    rows: Sequence[Row]
    seeds: Sequence[int]
    notes: Sequence[str]


def table_of(cells: Cells, stage: str) -> CellTable:
    """The table of the cells of an evaluation step. Raises DataError if they do not compare."""
    _check_same(cells, stage)
    first, variants = cells[0]["evaluations"][stage], dict[str, dict[int, Any]]()
    for one in cells:
        name = ", ".join(value for key, value in one["values"].items() if key != SEED)
        scores = one["evaluations"][stage]["scores"]
        if variants.setdefault(name, {}).setdefault(one[SEED], scores) != scores:
            raise DataError(f"{_address(one)}: two folders have different results of it")
    every = set[int]().union(*variants.values())
    seeds, notes = sorted(every.intersection(*variants.values())), list[str]()
    if not seeds:
        raise DataError("the cells have no seed in common\nhelp: run all of them with one seed")
    if left := sorted(every.difference(seeds)):
        notes.append(f"left out, as not all cells have them: seeds {', '.join(map(str, left))}")
    values = _values(first, variants, seeds)
    rows = list[Row]()
    for metric, measure in first["measures"].items():
        own, head = values[metric], metric == first["headline"]
        rows += _rows(metric, measure, own, first["baseline"], notes if head else [])
    if len(seeds) == 1:
        notes += [f"one seed, {seeds[0]}: the intervals are over prompts only"]
    return CellTable(_claimed(rows, first["headline"]), seeds, notes)


def _check_same(cells: Cells, stage: str) -> None:
    """Raise DataError if cells were not measured in the same way."""
    first, *others = cells
    for one in others:
        for name in SAME:
            here, there = (each["evaluations"].get(stage, {}).get(name) for each in (first, one))
            if _comparable(here) != _comparable(there):
                text = f"{_address(first)} and {_address(one)} do not compare"
                raise DataError(f"{text}: their {name} differ")


def _comparable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _comparable(one) for key, one in value.items() if key not in OF_A_RUN}
    return value


def _address(one: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in one["values"].items())


def _values(
    first: Mapping[str, Any], variants: Mapping[str, Mapping[int, Any]], seeds: Sequence[int]
) -> Values:
    """The scores of all policies, at the prompts where all have one. A policy that is the same in
    all variants is there once; others are called as their variants.
    """
    found, last = Values(), first["policies"][-1]
    different = {last} if len(variants) > 1 else set[str]()
    for policy in first["policies"]:
        texts = {str(_of_policy(own, policy, seeds)) for own in variants.values()}
        different |= {policy} if len(texts) > 1 else set()
    for metric, prompts in first["prompts"].items():
        columns = dict[str, Array]()
        for policy in first["policies"]:
            for variant, own in variants.items():
                name = policy
                if policy in different:
                    name = variant if len(different) == 1 else f"{policy} {variant}"
                if policy in own[seeds[0]][metric]:
                    scores = [own[seed][metric][policy] for seed in seeds]
                    columns.setdefault(name, np.array(scores, float).T)
        known = ~np.isnan([*columns.values()]).any((0, 2))
        units = np.array([str(unit or key) for key, unit in prompts])[known]
        found[metric] = {}
        for name, one in columns.items():
            found[metric][name] = _together(one[known], units)
    for metric, measure in first["measures"].items():
        if parts := measure["parts"]:
            found[metric] = {}
            for name in found[next(iter(parts))]:
                found[metric][name] = _combined(parts, found, name)
    return found


def _combined(parts: Mapping[str, float], values: Values, name: str) -> Array:
    """The values of a composite, as `Scores.combine` makes them: their mean is the sum of the
    weighted means of the parts, and so is their variance.
    """
    columns = {metric: values[metric][name] for metric in parts}
    size, found = sum(map(len, columns.values())), list[Array]()
    whole = sum(part * columns[metric].mean(0) for metric, part in parts.items())
    for metric, part in parts.items():
        count = len(columns[metric])
        wider = (size * (size - 1) / count / max(1, count - 1)) ** 0.5
        found.append(whole + part * wider * (columns[metric] - columns[metric].mean(0)))
    return np.concatenate(found)


def _of_policy(own: Mapping[int, Any], policy: str, seeds: Sequence[int]) -> list[Any]:
    return [each.get(policy) for seed in seeds for each in own[seed].values()]


def _together(column: Array, units: Any) -> Array:
    """The means of what was drawn together, such as the questions about one passage."""
    _, places, counts = np.unique(units, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), column.shape[1]))
    np.add.at(sums, places, column)
    return np.asarray(sums / counts[:, None])


# Over prompts and seeds


def _rows(
    metric: str,
    measure: Mapping[str, Any],
    values: Mapping[str, Array],
    baseline: str,
    notes: list[str],
) -> list[Row]:
    """A row for each policy by a metric. notes: get what the table could see by it."""
    levels = (measure["scale"] or {}).get("levels")
    bottom, top = levels or (0.0, 1.0)
    gaps, differences = dict[str, Array](), dict[str, dict[str, Any]]()
    for name, own in values.items():
        if baseline in values and name not in (baseline, BASE):
            gaps[name] = (own - values[baseline]) / (top - bottom)
    if gaps:
        found = crossed.intervals(np.stack([*gaps.values()]), bool(levels))
        differences = _differences(gaps, found)
        notes += _visible(found.parts, len(gaps), top - bottom, measure["percent"])
    rows, trained = list[Row](), measure["trained_on"]
    facts = {key: measure[key] for key in ("kind", "percent", "lower", "tested")}
    for name, own in values.items():
        facts["trained_on"] = trained.get(name, [*trained.values()][-1])
        share = (own - bottom) / (top - bottom)
        row = Row(name, metric, estimate=_scaled(_mean(share, levels), bottom, top), **facts)
        if name in differences:
            difference = _scaled(differences[name], 0.0, top - bottom)
            row = replace(row, baseline=baseline, difference=difference)
        rows.append(row)
    return rows


def _mean(share: Array, levels: Any) -> dict[str, Any]:
    """The mean of values and its interval, that of shares within 0 and 1."""
    pseudo = np.repeat(RIGHT_AND_WRONG, share.shape[1], 1)
    found = crossed.parts(np.concatenate([share, pseudo]) if levels else share)
    half, middle = float(crossed.half_width(crossed.spread(found))), float(found.mean)
    low, high = middle - half, middle + half
    if levels:
        low, high = max(0.0, low), min(1.0, high)
    return {"mean": float(share.mean()), "low": low, "high": high, "n": len(share)}


def _differences(gaps: Mapping[str, Array], found: Interval) -> dict[str, dict[str, Any]]:
    """Mean differences with their intervals and the p values of two-sided tests."""
    differences = dict[str, dict[str, Any]]()
    sided = zip(*crossed.one_sided(found.middle, found.spread), strict=True)
    ends = zip(found.middle - found.half, found.middle + found.half, strict=True)
    for (name, own), (low, high), p in zip(gaps.items(), ends, sided, strict=True):
        one = {"mean": float(own.mean()), "low": float(low), "high": float(high), "n": len(own)}
        differences[name] = {**one, "p": min(1.0, 2 * float(min(p)))}
    return differences


def _scaled(found: dict[str, Any], bottom: float, top: float) -> dict[str, Any]:
    ends = {name: bottom + (top - bottom) * found[name] for name in ("mean", "low", "high")}
    return {**found, **ends}


def _visible(found: Parts, count: int, width: float, percent: bool) -> list[str]:
    """The smallest difference that the table could see, as a range, because few seeds say little of
    what seeds add; and what lowers it. width: of the scale of the parts.
    """
    free = count * (found.runs - 1)
    if not free:
        return []
    prompts, seeds, rest = (
        np.asarray(one.mean()) for one in (found.prompts, found.seeds, found.rest)
    )
    ends = list[float]()
    for tail in (ERROR, 1 - ERROR):
        most = np.maximum(rest, seeds * free / special.chdtri(free, tail))
        typical = found._replace(prompts=prompts, seeds=most, rest=rest, seed_free=np.asarray(free))
        ends.append(width * crossed.visible(crossed.spread(typical), ERROR / count))
    what = "four times as many prompts about halve that"
    if seeds - rest > LARGE * (prompts + seeds - rest):
        what = "four times as many seeds halve that, no number of prompts does"
    low, high = (f"{100 * end:.0f}" if percent else f"{end:.2g}" for end in ends)
    return [f"could see a difference of {low} to {high}{' points' * percent}; {what}"]


def _claimed(rows: Sequence[Row], headline: str) -> list[Row]:
    """Rows with adjusted p values: half of the error in each direction.

    Better: the policies share it equally, and one that passes by the headline has its share for the
    other metrics (Holm 1979). Worse: all policies and metrics share it equally.
    """
    better, worse = dict[str, dict[int, float]](), dict[int, float]()
    for at, row in enumerate(rows):
        if row.tested and row.difference:
            p, gains = row.difference["p"], row.direction == 1
            better.setdefault(row.policy, {})[at] = p if gains else 1.0
            worse[at] = 1.0 if gains else p
    adjusted = statistics.holm(worse)
    for own in better.values():
        head = [at for at in own if rows[at].metric == headline]
        first = max(own.pop(at) for at in head) if head else 1.0
        others = statistics.holm(own)
        for at, p in {**dict.fromkeys(head, first), **others}.items():
            if rows[at].direction == 1:
                adjusted[at] = min(1.0, len(better) * max(first, p))
    return [replace(row, p=adjusted.get(at)) for at, row in enumerate(rows)]


# For people


def report_of(runs: Sequence[Path]) -> tuple[Report, dict[str, Any]]:
    """What the cells of runs say together, and the same as plain data. Raises DataError."""
    cells = [one for run in runs for one in rows_of(run)]
    if not cells:
        raise DataError(f"{runs[0]}: no cell is complete yet")
    blocks, facts, machines = list[Block](), dict[str, Any](), dict[str, set[str]]()
    for stage in dict.fromkeys(name for one in cells for name in one["evaluations"]):
        table = table_of([one for one in cells if stage in one["evaluations"]], stage)
        blocks += _blocks(table, len(cells))
        results = list(map(plain, table.rows))
        facts[stage] = {"seeds": table.seeds, "results": results, "notes": table.notes}
    for stage in (stage for one in cells for stage in one["stages"].values()):
        for fact in MACHINE:
            machines.setdefault(fact, set()).add(str(stage.get(fact) or ""))
    for fact, seen in machines.items():
        if len(seen - {""}) > 1:
            different = " and ".join(sorted(seen - {""}))
            blocks.append(f"warning: {fact}: {different}, which changes numbers")
    if not facts:
        blocks.append(f"{len(cells)} cells; the recipe has no step that evaluates")
    return Report(blocks), {"cells": [one["values"] for one in cells], "evaluations": facts}


def _blocks(table: CellTable, cells: int) -> list[Block]:
    metrics = {row.metric: f"{row.metric}{LOWER * row.lower}" for row in table.rows}
    lines = dict[str, dict[str, str]]()
    for row in table.rows:
        lines.setdefault(row.policy, dict.fromkeys(metrics, "-"))[row.metric] = cell(row)
    seeds = f"seed{'s' * (len(table.seeds) > 1)} {', '.join(map(str, table.seeds))}"
    title = f"mean and 95% interval over prompts and seeds: {cells} cells, {seeds}"
    note = f"{LOWER} lower is better" if any(row.lower for row in table.rows) else ""
    grid = [[name, *line.values()] for name, line in lines.items()]
    blocks: list[Block] = [Table(title, ["policy", *metrics.values()], grid, note=note)]
    texts = [one.sentences[0] for one in verdicts(table.rows)]
    return [*blocks, "\n".join([*texts, *table.notes, *[VARY] * (len(table.seeds) > 1)])]
