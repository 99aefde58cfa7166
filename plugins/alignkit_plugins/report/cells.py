"""Many runs as one result: what they say so far, their section of report.html, and CSV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignkit.contract.report import Report
from alignkit.errors import DataError
from alignkit.io.results import CELLS, json_lines
from alignkit.io.text import listed
from alignkit_plugins.cells.rows import row_files, to_come
from alignkit_plugins.cells.table import SEED, report_of
from alignkit_plugins.compare.rows import Row, rows_in
from alignkit_plugins.report import drawing, figures
from alignkit_plugins.report.drawing import Line, Point
from alignkit_plugins.report.figures import Figure
from alignkit_plugins.report.history import starts_of

OF_CSV = ["stage", "policy", "metric", "seed", "mean", "low", "high", "prompts"]
ENDS = ("mean", "low", "high", "n")  # numbers of an estimate, as the last columns are
LINES = 8  # that one chart can tell apart


def so_far(runs: Sequence[Path]) -> tuple[Report, dict[str, Any]]:
    """What the cells of runs say together, and which are still to come; and the same as plain data.
    Raises DataError.
    """
    complete = set[str]()
    for run in runs:
        complete.update(file.stem for file in row_files(run))
    left, commands = dict[str, list[str]](), dict[str, None]()  # an ordered set
    for run in runs:
        for address, command in to_come(run).items():
            if address not in complete:
                last = [{"outcome": ""}, *starts_of(run / CELLS / address)][-1]["outcome"]
                state = last if last in ("running", "failed", "waiting") else "to come"
                left.setdefault(state, []).append(address)
                commands[command] = None
    progress = {"complete": len(complete), "left": left, "commands": [*commands]}
    text = "\n".join(_progress(progress)) if left else ""
    if left and not complete:
        return Report([text]), {"cells": [], "folders": [], "evaluations": {}, "progress": progress}
    try:
        report, facts = report_of(runs)
    except DataError as error:
        if left:
            error.add_note(text)
        raise
    return Report([*report.blocks, *filter(None, [text])]), {**facts, "progress": progress}


def _progress(progress: Mapping[str, Any]) -> Iterator[str]:
    done, left = progress["complete"], progress["left"]
    states = [f"{state}: {listed(cells)}" for state, cells in left.items()]
    yield "; ".join([f"{done} of {done + sum(map(len, left.values()))} cells", *states])
    if "running" not in left:
        yield from (f"to continue: {command}" for command in progress["commands"])


def lines_of(facts: Mapping[str, Any]) -> list[list[Any]]:
    """The lines of CSV: one per policy, metric and seed, and one of all seeds with its interval."""
    lines: list[list[Any]] = [OF_CSV]
    for stage, found in facts["evaluations"].items():
        for row in rows_in(found):
            key = [stage, row.policy, row.metric]
            means = row.estimate.get("seeds", ())
            if len(found["seeds"]) == 1:
                means = [row.mean]
            for seed, mean in zip(found["seeds"], means, strict=False):
                lines.append([*key, seed, mean, "", "", ""])
            lines.append([*key, "all", *map(row.estimate.get, ENDS)])
    return lines


def section(report: Report, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the page says of cells: what the screen says, and charts of estimates and curves."""
    dots, planes = list[Figure](), list[Figure]()
    for found in facts["evaluations"].values():
        rows = rows_in(found)
        dots += figures.intervals(rows, bare=True)
        planes += _plane([row for row in rows if row.tested])
    name = Path(facts["folders"][0]).resolve().parents[1].name
    charts = {"dots": dots, "planes": planes, "curves": _curves(facts)}
    return {"name": name, "blocks": report.blocks, **charts}


def _plane(rows: Sequence[Row]) -> list[Figure]:
    """The headline against the metric that follows it, if there is one."""
    points = dict[str, dict[str, Point]]()
    for row in rows:
        points.setdefault(row.metric, {})[row.policy] = figures.point_of(row)
    if len(points) < 2:
        return []
    (one, across), (other, up), *_ = points.items()
    both = {name: (point, up[name]) for name, point in across.items() if name in up}
    title = f"{other} against {one}"
    return [Figure(title, drawing.plane(both, one, other), f"{title}, of each policy")]


def _curves(facts: Mapping[str, Any]) -> dict[str, list[Figure]]:
    """The curves of each stage that varies: a line per variant, with a band over its seeds, from the
    histories in the folders of cells.
    """
    stages, found = dict[str, dict[str, list[Path]]](), dict[str, list[Figure]]()
    for values, folder in zip(facts["cells"], facts["folders"], strict=True):
        name = ", ".join(value for key, value in values.items() if key != SEED)
        for file in sorted(Path(folder).glob("[!.]*/metrics.jsonl")):
            stages.setdefault(file.parent.name, {}).setdefault(name, []).append(file)
    for stage, variants in stages.items():
        different = {tuple(file.read_bytes() for file in files) for files in variants.values()}
        if len(different) < len(variants):
            continue
        lines = dict[str, dict[str, Line]]()
        for name, files in [*variants.items()][:LINES]:
            lines[name] = over_seeds([figures.lines_of(json_lines(file)) for file in files])
        found[stage] = figures.of_stage(stage, lines)
    return found


def over_seeds(runs: Sequence[Mapping[str, Line]]) -> dict[str, Line]:
    """The mean of each metric as far as all seeds have it, with a band from the lowest to the
    highest.
    """
    found = dict[str, Line]()
    for metric in runs[0]:
        lines = [run.get(metric, figures.NONE) for run in runs]
        x = min((line.x for line in lines), key=len)
        if x and all(line.x[: len(x)] == x for line in lines):
            y = np.array([line.y[: len(x)] for line in lines])
            band = np.stack([y.min(0), y.max(0)], 1)
            found[metric] = Line(x, y.mean(0).tolist(), band.tolist())
    return found
