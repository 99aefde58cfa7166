"""What the rows of several runs say together: rows like those of one evaluation, with intervals over
prompts and seeds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from alignkit.contract.report import Block, Report
from alignkit.errors import DataError
from alignkit.evaluation import statistics
from alignkit.io.text import listed
from alignkit_plugins.cells import crossed
from alignkit_plugins.cells.changes import change_in_words, changes
from alignkit_plugins.cells.crossed import Array
from alignkit_plugins.cells.rows import rows_of, scores_in
from alignkit_plugins.cells.trends import FEWEST, chosen, numbers_of, trend, turn
from alignkit_plugins.compare.rows import ANSWERS, Row, adjusted, deciding, plain
from alignkit_plugins.compare.scores import Measure, Score, Scores, compare
from alignkit_plugins.compare.tables import table
from alignkit_plugins.compare.verdicts import MORE, verdicts

SEED, BASE = "seed", "base"
BY_METRIC = ("measures", "prompts")
READABLE = ("sampling", "policies")  # parts of evaluations that are short
SAME = ("sampling", "headline", "baseline", "policies", "measures", "prompts")
OF_A_RUN = (SEED, "trained_on", "scale", "percent")  # parts of these that may differ
RIGHT_AND_WRONG = [[1.0], [1.0], [0.0], [0.0]]  # pseudo-prompts of a share (Agresti and Coull 1998)
ERROR = (1 - statistics.CONFIDENCE) / 2  # in each direction
EQUAL = 1e-12  # differences that are rounding
ROUNDED = 0.01  # difference of a score, and share of the scores that differ by more, of one policy
UNKNOWN = {"low": None, "high": None}  # an interval of values that are all alike
LARGE = 0.25  # share of the variance that is the seeds', from which more prompts do not help
UNCLEAR = "No clear difference in"  # says only which other metrics there are
SIZE = "base, million weights"
COSTS = {  # fact of a stage -> metric, unit
    "seconds": ("training, minutes", 60),
    "memory": ("peak memory, GiB", 2**30),
    "tokens": ("trained on, thousand tokens", 10**3),
    "base_parameters": (SIZE, 10**6),
}
VARY = "Seeds vary what is sampled and in which order, not which rows were collected."

Cells = Sequence[Mapping[str, Any]]  # rows of cells (`rows.rows_of`)
Grid = Mapping[str, Array]  # the values [units, seeds] of each policy by a metric
Grids = Mapping[str, Grid]  # by metric


class CellTable(NamedTuple):
    """The rows of a table, and sentences on what they rest. headline: the first metric that the
    policies learned from least. grid: its values of those that are compared with the baseline.
    """

    rows: Sequence[Row]
    seeds: Sequence[int]
    notes: Sequence[str]
    headline: str
    measure: Measure
    grid: Grid


def table_of(cells: Cells, stage: str) -> CellTable:
    """The table of the cells of an evaluation step. Raises DataError if they do not compare."""
    _check_same(cells, stage)
    variants = dict[str, dict[int, Any]]()
    for one in cells:
        name = ", ".join(value for key, value in one["values"].items() if key != SEED)
        own = variants.setdefault(name, {})
        if own.setdefault(one[SEED], one)["evaluations"][stage] != one["evaluations"][stage]:
            raise DataError(f"{_address(one)}: two folders have different results of it")
    every = set[int]().union(*variants.values())
    seeds, notes = sorted(every.intersection(*variants.values())), list[str]()
    if not seeds:
        raise DataError("the cells have no seed in common\nhelp: run all of them with one seed")
    if left := sorted(every.difference(seeds)):
        notes.append(f"left out, as not all cells have them: seeds {', '.join(map(str, left))}")
    first = cells[0]["evaluations"][stage]
    whole = {variant: [own[seed] for seed in seeds] for variant, own in variants.items()}
    names, evaluations = _names(first["policies"], whole, stage), list[Any]()
    for variant, runs in whole.items():
        for one in runs:
            evaluations.append((one["evaluations"][stage], names[variant], one[SEED]))
    scores, of_first = scores_in(evaluations), names[next(iter(whole))]
    # Variants of the only policy, or of the baseline, are compared with the first one
    baseline = of_first[first["baseline"] or first["policies"][-1]]
    columns = dict.fromkeys(chain.from_iterable(own.values() for own in names.values()))
    others = [name for name in columns if name not in (baseline, BASE)]
    grids = _grids(scores) if len(seeds) > 1 else {}
    rows = adjusted(compared(scores, baseline, others, grids), of_cells=True)
    deciders, headline = dict[str, list[str]](), first["headline"]
    # A policy is judged by the first metric of those that it learned from least, and all by the last
    for place in sorted(deciding(rows).values()):
        headline = rows[place].metric
        deciders.setdefault(headline, []).append(rows[place].policy)
    measure, grid = scores.measures[headline], grids.get(headline, {})
    if not grids:
        notes += [f"one seed, {seeds[0]}: the intervals are over prompts only"]
    for metric, policies in deciders.items() if grids else ():
        gaps = np.stack([grids[metric][name] - grids[metric][baseline] for name in policies])
        notes += _visible(gaps, scores.measures[metric], metric, ERROR / len(others))
    notes += _best(scores, headline, baseline, others, grids)
    varied = [name for name in others if name not in first["policies"]] or others
    notes += apart(scores, headline, varied[:1], varied[1:], grids)
    for key, numbers in numbers_of([one["values"] for one in cells], SEED).items():
        last = first["policies"][-1]
        at = {names[variant][last]: number for variant, number in numbers.items()}
        percent = bool(measure.percent)
        notes += trend(grid, at, key, headline, percent)
        notes += turn(grid, at, key, headline, percent, measure.lower)
    grid = {name: own for name, own in grid.items() if name in others}
    return CellTable([*rows, *_costs(whole, names)], seeds, notes, headline, measure, grid)


def difference(one: Any, other: Any, names: Sequence[str] = SAME) -> str:
    """Which of some parts of two evaluations differs, so that they do not compare; empty if they
    do.
    """
    for name in names:
        ours, theirs = _comparable(one.get(name)), _comparable(other.get(name))
        # One of them may lack a metric; digests of options have these names, too
        if name in BY_METRIC and isinstance(ours, Mapping):
            shared = ours.keys() & theirs.keys()
            ours, theirs = ({key: own[key] for key in shared} for own in (ours, theirs))
        if ours != theirs and name in READABLE:
            words = listed(changes(ours, theirs), word=change_in_words)
            return f"they differ in {name} ({words})"
        if ours != theirs:
            return f"they differ in {name}"
    return ""


def _comparable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _comparable(one) for key, one in value.items() if key not in OF_A_RUN}
    return value


def _check_same(cells: Cells, stage: str) -> None:
    """Raise DataError if cells were not measured in the same way, or are of several recipes."""
    first, *others = cells
    for one in others:
        text = f"{_address(first)} and {_address(one)} do not compare"
        if first["base"] != one["base"]:
            help = "run all of them again, or delete the files of the older ones in RUN/cells"
            raise DataError(f"{text}: the recipe has changed between them\nhelp: {help}")
        if why := difference(first["evaluations"][stage], one["evaluations"][stage]):
            help = "run those of one way of measuring into a folder of their own, by --out"
            raise DataError(f"{text}: {why}\nhelp: {help}")


def _address(one: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in one["values"].items())


def _names(
    policies: Sequence[str], variants: Mapping[str, Cells], stage: str
) -> dict[str, dict[str, str]]:
    """What the policies of each variant are called. A policy that is the same in all of them has a
    name in the first one only; others are called as their variants.
    """
    different = {policies[-1]} if any(variants) else set[str]()
    first, *others = variants.values()
    for policy in policies:
        if any(_differs(first, own, policy, stage) for own in others):
            different.add(policy)
    alone = len(different) == 1 and {BASE, *policies}.isdisjoint(variants)
    names, shared = dict[str, dict[str, str]](), {one: one for one in policies}
    for variant in variants:
        names[variant] = shared
        for policy in different:
            own = variant if alone else f"{policy} {variant}"
            names[variant] = {**names[variant], policy: own}
        shared = {}
    return names


def _differs(variant: Cells, other: Cells, policy: str, stage: str) -> bool:
    """Whether two variants have different policies of a name, by the keys of their stages. One
    without a stage, such as the base model, differs by its scores, of which a few may differ by
    rounding: those on other machines, or next to other answers.
    """
    for one, theirs in zip(variant, other, strict=True):
        key = one["stages"].get(policy, {}).get("hash")
        if key != theirs["stages"].get(policy, {}).get("hash"):
            return True
        scores, others = (own["evaluations"][stage]["scores"] for own in (one, theirs))
        equal = list[bool]()
        for metric in scores if key is None else ():
            ours, own = (found.get(metric, {}).get(policy) or () for found in (scores, others))
            equal += map(_alike, ours, own)
        if equal.count(False) > ROUNDED * len(equal):
            return True
    return False


def _alike(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=ROUNDED, abs_tol=ROUNDED)


def _costs(variants: Mapping[str, Cells], names: Mapping[str, Mapping[str, str]]) -> Iterator[Row]:
    """What the stage of each policy took, the medians over its cells, as a stage takes longer next to
    other work; and the size of its base where bases differ.
    """
    sizes = set[Any]()
    for one in chain(*variants.values()):
        sizes.update(stage.get("base_parameters") for stage in one["stages"].values())
    sizes.discard(None)
    for variant, cells in variants.items():
        for policy, name in names[variant].items():
            for fact, (metric, unit) in COSTS.items():
                found = [one["stages"].get(policy, {}).get(fact) for one in cells]
                if None not in found and (metric != SIZE or len(sizes) > 1):
                    yield Row(name, metric, ANSWERS, {"mean": median(found) / unit})


# The comparison


def compared(
    scores: Scores, baseline: str, names: Sequence[str], grids: Grids | None = None
) -> list[Row]:
    """The rows of an evaluation, with intervals over prompts, and over seeds if there are several.
    grids: by metric (`_grids`), which one seed does not need.
    """
    rows = compare(scores, baseline, names)
    if not grids:
        return rows
    found = list[Row]()
    for metric in dict.fromkeys(row.metric for row in rows):
        own = [row for row in rows if row.metric == metric]
        found += _over_seeds(own, scores.measures[metric], grids[metric])
    return found


def apart(
    scores: Scores,
    metric: str,
    baselines: Sequence[str],
    names: Sequence[str],
    grids: Grids | None = None,
) -> Iterator[str]:
    """How far policies are from another one by a metric, in words. See `compared`."""
    for baseline in baselines:
        for row in _by(metric, scores, baseline, names, grids):
            if row.difference:
                text = statistics.interval_text(row.difference, sign=True, percent=row.percent)
                yield f"{row.policy} against {baseline}: {text} in {metric}, not adjusted"


def _best(
    scores: Scores, metric: str, baseline: str, names: Sequence[str], grids: Grids | None
) -> Iterator[str]:
    """The policy that is clearly better than each other one by a metric, if there is one (Hsu 1984,
    "Constrained simultaneous confidence intervals for multiple comparisons with the best").
    """
    gains = dict[str, float]()
    for row in _by(metric, scores, baseline, names if len(names) > 1 else (), grids):
        if row.direction:  # compared, and not equal
            gains[row.policy] = row.direction * abs(row.difference["mean"])
    for best in sorted(gains, key=gains.__getitem__)[-1:]:  # no other one can be
        others = [name for name in (baseline, *names) if name != best]
        rows = [row for row in _by(metric, scores, best, others, grids) if row.baseline == best]
        worse = [row.difference["p"] for row in rows if row.direction == -1]
        if len(worse) == len(others) and max(worse) * len(rows) < 2 * ERROR:
            yield f"{best} is better than each other policy in {metric}."


def _by(metric: str, scores: Scores, *rest: Any) -> list[Row]:
    """`compared`, by one metric."""
    needed = {metric, *scores.measures[metric].parts}
    own = Scores(scores.measures, [one for one in scores.rows if one.metric in needed])
    return [row for row in compared(own, *rest) if row.metric == metric]


def choice(tuning: CellTable, shown: CellTable, step: str) -> Iterator[str]:
    """What choosing a variant gains: for each seed, the one that is best by the tuning step with the
    other seeds. A choice that is scored by what it was made by looks too good.
    """
    seeds, by, scored, measure = shown.seeds, tuning.grid, shown.grid, shown.measure
    if len(seeds) < FEWEST or len(scored) < 2 or tuning.seeds != seeds or [*by] != [*scored]:
        return
    places, every = chosen(np.stack([*by.values()]), measure.lower), [*by]
    names = [every[place] for place in places]
    values = np.stack([scored[name][:, at] for at, name in enumerate(names)], 1)
    found = statistics.interval_text(_mean(values, measure), percent=bool(measure.percent))
    counts = ", ".join(f"{name} {count}x" for name, count in Counter(names).most_common())
    yield f"chosen by {step} with the other seeds ({counts}): {found} in {shown.headline}"


def _grids(scores: Scores) -> Grids:
    """The values of each policy by each metric."""
    known = dict[str, list[Score]]()
    for one in scores.rows:
        known.setdefault(one.metric, []).append(one)
    return {metric: _grid(rows) for metric, rows in known.items()}


def _grid(rows: Iterable[Score]) -> dict[str, Array]:
    """The values of each policy by one metric, where all have one. What was drawn together, such as
    the questions about one passage, is one unit (`statistics.clustered`).
    """
    places, columns = dict[str, dict[tuple[str, int], float]](), dict[str, dict[int, None]]()
    unit_of = dict[str, Any]()
    for one in rows:
        if one.value is not None:
            places.setdefault(one.prompt, {})[one.policy, one.seed] = one.value
            columns.setdefault(one.policy, {})[one.seed] = None
            unit_of[one.prompt] = one.unit
    whole = sum(map(len, columns.values()))
    known = [prompt for prompt, own in places.items() if len(own) == whole]
    units, found = [unit_of[prompt] for prompt in known], dict[str, Array]()
    for policy, seeds in columns.items():
        values = list[list[float]]()
        for seed in seeds:
            own = [places[prompt][policy, seed] for prompt in known]
            values.append(statistics.clustered(own, units))
        found[policy] = np.array(values).T
    return found


def _over_seeds(rows: Sequence[Row], measure: Measure, grid: Mapping[str, Array]) -> list[Row]:
    """The rows of one metric, with intervals over prompts and seeds."""
    gaps = dict[str, Array]()
    for row in rows:
        if row.baseline in grid and row.policy in grid:
            gaps[row.policy] = grid[row.policy] - grid[row.baseline]
    differences = _differences(gaps, _of_shares(measure)) if gaps else {}
    found = list[Row]()
    for row in rows:
        if row.policy in grid:
            row = replace(row, estimate=_mean(grid[row.policy], measure))
        if own := differences.get(row.policy):
            row = replace(row, difference=own, equal_length={}, win_rate={}, counts="")
        found.append(row)
    return found


def _of_shares(measure: Measure) -> bool:
    """Whether all scores are 0 or 1."""
    return measure.scale is not None and measure.scale.levels == (0.0, 1.0)


def _mean(share: Array, measure: Measure) -> dict[str, Any]:
    """The mean of values and its interval, within what is possible."""
    scale, of_shares = measure.scale, _of_shares(measure)
    if measure.percent and not measure.parts:
        of_shares = of_shares or bool(np.isin(share, (0.0, 1.0)).all())
    pseudo = np.repeat(RIGHT_AND_WRONG, share.shape[1], 1)
    found = crossed.parts(np.concatenate([share, pseudo]) if of_shares else share)
    half, middle = float(crossed.half_width(crossed.spread(found))), float(found.mean)
    low, high = middle - half, middle + half
    if of_shares or measure.percent:
        low, high = max(-1.0 if measure.parts else 0.0, low), min(1.0, high)
    elif scale is not None:
        low, high = max(scale.bounds[0], low), min(scale.bounds[1], high)
    seeds = share.mean(0).tolist()
    return {**_estimate(share, low, high, of_shares), "seeds": seeds}


def _estimate(values: Array, low: float, high: float, of_shares: bool) -> dict[str, Any]:
    """The mean of values with its interval, which nothing says if they are all alike and no shares."""
    ends: Any = {"low": low, "high": high}
    if not of_shares and float(np.ptp(values)) < EQUAL:
        ends = UNKNOWN
    return {"mean": float(values.mean()), **ends, "n": len(values)}


def _differences(gaps: Mapping[str, Array], of_shares: bool) -> dict[str, dict[str, Any]]:
    """Mean differences with their intervals and the p values of two-sided tests, which a few equal
    prompts do not make certain (`statistics.not_surer`).
    """
    found, differences = crossed.intervals(np.stack([*gaps.values()]), of_shares), {}
    sided = zip(*crossed.one_sided(found.middle, found.spread), strict=True)
    ends = zip(found.middle - found.half, found.middle + found.half, strict=True)
    for (name, own), (low, high), p in zip(gaps.items(), ends, sided, strict=True):
        by_prompt, both = own.mean(1), 2 * float(min(p))
        different, equal = int(np.count_nonzero(by_prompt)), float(np.ptp(by_prompt)) < EQUAL
        one = _estimate(own, float(low), float(high), of_shares)
        differences[name] = {**one, "p": statistics.not_surer(both, different, equal)}
    return differences


def _visible(gaps: Array, measure: Measure, metric: str, level: float) -> list[str]:
    """The smallest difference that the table could see, as a range, because few seeds say little of
    what seeds add; and what lowers it. gaps: [policies, units, seeds].
    """
    if float(np.abs(gaps).max()) < EQUAL:
        text = "so it tells none from another: harder prompts or another metric may"
        return [f"The policies are equal in {metric} at every prompt and seed, {text}."]
    found = crossed.intervals(gaps, _of_shares(measure)).parts
    least, _, most = crossed.visible(found, level)
    prompts, seeds, rest = (float(one.mean()) for one in (found.prompts, found.seeds, found.rest))
    what = "four times as many prompts about halve that"
    if seeds - rest > LARGE * (prompts + seeds - rest):
        what = "four times as many seeds halve that, no number of prompts does"
    ends, unit = [f"{one:.2g}" for one in (least, most)], ""
    if measure.percent:
        if least >= 1:
            return [f"With 80% power the table could see no difference at all in {metric}: {what}."]
        ends, unit = [f"{100 * one:.0f}" for one in (least, min(1.0, most))], " points"
    seen = " to ".join(dict.fromkeys(ends))
    return [f"With 80% power the table could see a difference of {seen}{unit} in {metric}: {what}."]


# For people


def report_of(runs: Sequence[Path]) -> tuple[Report, dict[str, Any]]:
    """What the cells of runs say together, and the same as plain data. Raises DataError."""
    cells = [*chain.from_iterable(map(rows_of, runs))]
    if not cells:
        raise DataError(f"{runs[0]}: no cell is complete yet")
    blocks, facts, tables = list[Block](), dict[str, Any](), dict[str, CellTable]()
    for stage in dict.fromkeys(chain.from_iterable(one["evaluations"] for one in cells)):
        made = table_of([one for one in cells if stage in one["evaluations"]], stage)
        for step, one in tables.items():
            made = made._replace(notes=[*made.notes, *choice(one, made, step)])
        tables[stage] = made
        blocks += _blocks(made, cells)
        results = list(map(plain, made.rows))
        facts[stage] = {"seeds": made.seeds, "results": results, "notes": made.notes}
    computed = dict[str, list[str]]()  # on which machines -> the stages
    for stage in dict.fromkeys(chain.from_iterable(one["stages"] for one in cells)):
        made_on = {one["stages"].get(stage, {}).get("made_on") for one in cells} - {None}
        if len(made_on) > 1:
            computed.setdefault(" and ".join(sorted(made_on)), []).append(stage)
    for machines, stages in computed.items():
        text = f"warning: cells computed in {machines} differ by that, too: {listed(stages)}"
        blocks.append(text)
    if not facts:
        blocks.append(f"{len(cells)} cells; the recipe has no step that evaluates")
    known = {"cells": [one["values"] for one in cells], "folders": [one["folder"] for one in cells]}
    return Report(blocks), {**known, "evaluations": facts}


def _blocks(found: CellTable, cells: Cells) -> list[Block]:
    several = len(found.seeds) > 1
    seeds = f"seed{'s' * several} {', '.join(map(str, found.seeds))}"
    title = f"mean and 95% interval over prompts and seeds: {len(cells)} cells, {seeds}"
    axes = [key.rpartition(".")[2] for key in cells[0]["values"] if key != SEED]
    if len(axes) > 1:  # or a name such as `1e-5, 2` does not say of what
        title += f"; policies by {', '.join(axes)}"
    texts = list[str]()
    for verdict in verdicts(found.rows):
        shown = [one for one in verdict.sentences if not one.startswith((MORE, UNCLEAR))]
        texts.append(" ".join(shown))
    notes = "\n".join([*texts, *found.notes, *[VARY] * several])
    return [table(found.rows, title, lines="policy"), notes]
