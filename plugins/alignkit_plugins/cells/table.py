"""What the cells of a recipe say together: rows like those of one evaluation, with intervals over
prompts and seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alignkit.contract.report import Block, Report, Table
from alignkit.errors import DataError
from alignkit.evaluation import statistics
from alignkit_plugins.cells import crossed
from alignkit_plugins.cells.crossed import Array, Interval, Parts
from alignkit_plugins.cells.rows import MACHINE, rows_of
from alignkit_plugins.compare.rows import Row, plain
from alignkit_plugins.compare.tables import LOWER, cell
from alignkit_plugins.compare.verdicts import MORE, verdicts
from alignkit_plugins.text.readable import estimate_text

SEED, BASE = "seed", "base"
SAME = ("sampling", "headline", "baseline", "policies", "measures", "prompts")
OF_A_RUN = (SEED, "trained_on", "scale")  # parts of these that may differ
RIGHT_AND_WRONG = [[1.0], [1.0], [0.0], [0.0]]  # pseudo-prompts of a share (Agresti and Coull 1998)
ERROR = (1 - statistics.CONFIDENCE) / 2  # in each direction
EQUAL = 1e-12  # differences that are rounding
LARGE = 0.25  # share of the variance that is the seeds', from which more prompts do not help
UNCLEAR = "No clear difference in"  # says only which other metrics there are
VARY = "Seeds vary what is sampled and in which order, not which rows were collected."

Cells = Sequence[Mapping[str, Any]]  # rows of cells (`rows.read_row`)


class Column(NamedTuple):
    """The values [prompts, seeds] of a policy by a metric, what each prompt is called, and whether
    the policy learned from the metric.
    """

    values: Array
    units: Sequence[str]
    trained_on: bool | None = None


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
        own = variants.setdefault(name, {})
        if own.setdefault(one[SEED], one["evaluations"][stage]) != one["evaluations"][stage]:
            raise DataError(f"{_address(one)}: two folders have different results of it")
    every = set[int]().union(*variants.values())
    seeds, notes = sorted(every.intersection(*variants.values())), list[str]()
    if not seeds:
        raise DataError("the cells have no seed in common\nhelp: run all of them with one seed")
    if left := sorted(every.difference(seeds)):
        notes.append(f"left out, as not all cells have them: seeds {', '.join(map(str, left))}")
    columns, rows = _columns(first, variants, seeds), list[Row]()
    for metric, measure in first["measures"].items():
        head = metric == first["headline"]
        rows += _rows(metric, measure, columns[metric], first["baseline"], notes if head else [])
    if len(seeds) == 1:
        notes += [f"one seed, {seeds[0]}: the intervals are over prompts only"]
    return CellTable(_claimed(rows, first["headline"]), seeds, notes)


def _check_same(cells: Cells, stage: str) -> None:
    """Raise DataError if cells were not measured in the same way, or are of several recipes."""
    first, *others = cells
    for one in others:
        text = f"{_address(first)} and {_address(one)} do not compare"
        if first["base"] != one["base"]:
            help = "run all of them again, or delete the files of the older ones in RUN/cells"
            raise DataError(f"{text}: the recipe has changed between them\nhelp: {help}")
        for name in SAME:
            here, there = (each["evaluations"].get(stage, {}).get(name) for each in (first, one))
            if _comparable(here) != _comparable(there):
                raise DataError(f"{text}: their {name} differ")


def _comparable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _comparable(one) for key, one in value.items() if key not in OF_A_RUN}
    return value


def _address(one: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in one["values"].items())


def _columns(
    first: Mapping[str, Any], variants: Mapping[str, Mapping[int, Any]], seeds: Sequence[int]
) -> dict[str, dict[str, Column]]:
    """The scores by each metric of all policies. A policy that is the same in all variants is there
    once; others are called as their variants.
    """
    policies, found = first["policies"], dict[str, dict[str, Column]]()
    different = {policies[-1]} if len(variants) > 1 else set[str]()
    for policy in policies:
        texts = {str(_of_policy(own, policy, seeds)) for own in variants.values()}
        different |= {policy} if len(texts) > 1 else set()
    alone = len(different) == 1 and {BASE, *policies}.isdisjoint(variants)
    for metric, measure in first["measures"].items():
        found[metric] = {}
        parts = measure["parts"] or {metric: 1.0}
        for policy in policies:
            for variant, own in variants.items():
                name = policy
                if policy in different:
                    name = variant if alone else f"{policy} {variant}"
                if (
                    name not in found[metric]
                    and policy in own[seeds[0]]["scores"][next(iter(parts))]
                ):
                    column = _column([own[seed] for seed in seeds], policy, parts)
                    trained = own[seeds[0]]["measures"][metric]["trained_on"].get(policy)
                    found[metric][name] = column._replace(trained_on=trained)
    return found


def _of_policy(own: Mapping[int, Any], policy: str, seeds: Sequence[int]) -> list[Any]:
    return [each.get(policy) for seed in seeds for each in own[seed]["scores"].values()]


def _column(seeds: Sequence[Any], policy: str, parts: Mapping[str, float]) -> Column:
    """The values of a policy by a metric, or by a composite of several: a sum of weighted means, as
    `Scores.combine` makes it. What was drawn together, such as the questions about one passage, is
    one value, with the mean of all values and its variance (`statistics.clustered`).
    """
    columns, units = list[Array](), list[str]()
    for metric in parts:
        scores = np.array([one["scores"][metric][policy] for one in seeds], float).T
        known = ~np.isnan(scores).any(1)
        for (key, unit), is_known in zip(seeds[0]["prompts"][metric], known, strict=True):
            units += [f"prompt {key}" if unit is None else f"unit {unit}"] * bool(is_known)
        columns.append(scores[known])
    size, whole = len(units), 0.0
    for part, own in zip(parts.values(), columns, strict=True):
        whole = whole + part * own.mean(0)
    if len(parts) > 1:
        for at, part in enumerate(parts.values()):
            own, count = columns[at], len(columns[at])
            wider = (size * (size - 1) / count / max(1, count - 1)) ** 0.5
            columns[at] = whole + part * wider * (own - own.mean(0))
    values = np.concatenate(columns)
    names, places = np.unique(units, return_inverse=True)
    sums = np.zeros((len(names), len(seeds)))
    np.add.at(sums, places, values - values.mean(0))
    return Column(values.mean(0) + len(names) / size * sums, [*names])


# Over prompts and seeds


def _rows(
    metric: str,
    measure: Mapping[str, Any],
    columns: Mapping[str, Column],
    baseline: str,
    notes: list[str],
) -> list[Row]:
    """A row for each policy by a metric. notes: get what the table could see by it."""
    levels = (measure["scale"] or {}).get("levels")
    bottom, top = levels or (0.0, 1.0)
    every = set.intersection(*(set(one.units) for one in columns.values()))
    shares = dict[str, Array]()
    for name, one in columns.items():
        known = [unit in every for unit in one.units]
        shares[name] = (one.values[known] - bottom) / (top - bottom)
    gaps, differences = dict[str, Array](), dict[str, dict[str, Any]]()
    for name, share in shares.items():
        if baseline in shares and name not in (baseline, BASE):
            gaps[name] = share - shares[baseline]
    if gaps:
        found = crossed.intervals(np.stack([*gaps.values()]), bool(levels))
        differences = _differences(gaps, found)
        notes += _visible(found.parts, len(gaps), top - bottom, measure["percent"])
        first, *others = gaps
        for name in others:
            apart = {name: gaps[name] - gaps[first]}
            between = crossed.intervals(np.stack([*apart.values()]), bool(levels))
            gap = _scaled(_differences(apart, between)[name], 0.0, top - bottom)
            text = estimate_text(gap, sign=True, percent=measure["percent"])
            notes.append(f"{name} against {first}: {text} in {metric}, not adjusted")
    rows = list[Row]()
    facts = {key: measure[key] for key in ("kind", "percent", "lower", "tested")}
    for name, share in shares.items():
        facts["trained_on"] = columns[name].trained_on
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
    """Mean differences with their intervals and the p values of two-sided tests, which a few equal
    prompts do not make certain (`statistics.p_value`).
    """
    differences = dict[str, dict[str, Any]]()
    sided = zip(*crossed.one_sided(found.middle, found.spread), strict=True)
    ends = zip(found.middle - found.half, found.middle + found.half, strict=True)
    for (name, own), (low, high), p in zip(gaps.items(), ends, sided, strict=True):
        by_prompt, both = own.mean(1), 2 * float(min(p))
        apart, equal = int(np.count_nonzero(by_prompt)), float(np.ptp(by_prompt)) < EQUAL
        if apart < statistics.FEW or equal:
            both = max(both, 2 * 0.5**apart)
        one = {"mean": float(own.mean()), "low": float(low), "high": float(high), "n": len(own)}
        differences[name] = {**one, "p": min(1.0, both)}
    return differences


def _scaled(found: dict[str, Any], bottom: float, top: float) -> dict[str, Any]:
    ends = {name: bottom + (top - bottom) * found[name] for name in ("mean", "low", "high")}
    return {**found, **ends}


def _visible(found: Parts, count: int, width: float, percent: bool) -> list[str]:
    """The smallest difference that the table could see, as a range, because few seeds say little of
    what seeds add; and what lowers it. width: of the scale of the parts.
    """
    if found.runs == 1:
        return []
    least, _, most = crossed.visible(found, ERROR / count)
    prompts, seeds, rest = (float(one.mean()) for one in (found.prompts, found.seeds, found.rest))
    what = "four times as many prompts about halve that"
    if seeds - rest > LARGE * (prompts + seeds - rest):
        what = "four times as many seeds halve that, no number of prompts does"
    ends = width * least, width * most
    if percent and least >= 1:
        return [f"could see no difference at all; {what}"]
    low, high = (f"{100 * min(1.0, end):.0f}" if percent else f"{end:.2g}" for end in ends)
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
    texts = list[str]()
    for verdict in verdicts(table.rows):
        shown = [one for one in verdict.sentences if not one.startswith((MORE, UNCLEAR))]
        texts.append(" ".join(shown))
    return [*blocks, "\n".join([*texts, *table.notes, *[VARY] * (len(table.seeds) > 1)])]
