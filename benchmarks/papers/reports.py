"""What claims share whose row is a whole run that ends in a stage `report`: the scores of each policy
by prompt, and what is made of them.

The rule has `axes`: for each the weights of metrics, of whose means over prompts it is a sum.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from alignkit.data.group import read_groups
from alignkit_plugins.cells import crossed
from alignkit_plugins.cells.crossed import Array
from alignkit_plugins.report import drawing
from benchmarks.papers.claim import HERE, by_seed, over_seeds

CELLS = HERE.parent / "outcomes" / "cells"

Rows = Sequence[Mapping[str, Any]]


def scores(run: Path) -> dict[str, dict[str, list[float]]]:
    """By metric and policy the scores of prompts, means over their samples."""
    found = dict[str, dict[str, list[float]]]()
    for group in read_groups(run / "report" / "samples.jsonl"):
        own = dict[tuple[str, str], list[float]]()
        for response in group.responses:
            for metric, score in response.scores.items():
                if score is None:
                    raise ValueError(f"{group.id}: no {metric} of {response.source}")
                own.setdefault((metric, response.source or ""), []).append(score)
        for (metric, policy), values in own.items():
            found.setdefault(metric, {}).setdefault(policy, []).append(round(fmean(values), 6))
    return found


def measures(rows: Rows, rule: Mapping[str, Any]) -> dict[str, dict[int, Array]]:
    """By `POLICY, AXIS` and seed the parts [prompts] whose mean is the policy's value on an axis.

    Prompts are drawn within metrics, so that what is the same for all prompts of a metric is no
    noise: a part is the axis itself, plus a prompt's distance from the mean of its metric, times
    its weight.
    """
    found = dict[str, dict[int, Array]]()
    for row in rows:
        for axis, weights in rule["axes"].items():
            parts = dict[str, list[Array]]()
            for metric, weight in weights.items():
                for policy, values in row["values"][metric].items():
                    parts.setdefault(policy, []).append(weight * np.array(values) / len(values))
            for policy, own in parts.items():
                whole = float(sum(part.sum() for part in own))
                within = np.concatenate([part - part.mean() for part in own])
                by_seed = found.setdefault(f"{policy}, {axis}", {})
                by_seed[row["seed"]] = whole + len(within) * within
    return found


def stored(cells: Path = CELLS) -> Rows:
    """Rows of a table of methods: the quick start by PPO, whose policies are base, sft and align."""
    found = list[Mapping[str, Any]]()
    for file in sorted(cells.glob("*=ppo.json")):
        cell = json.loads(file.read_text("utf-8"))
        found.append({"seed": cell["seed"], "values": cell["evaluations"]["report"]["scores"]})
    return found


def expected(rule: Mapping[str, Any], runs: int, cells: Path = CELLS) -> dict[str, crossed.Parts]:
    """By test what the quick start's PPO gains over SFT on the test's axis, and how it varies with so
    many seeds.
    """
    rows = stored(cells)
    known, found = rows[0]["values"].keys(), dict[str, crossed.Parts]()
    axes = {axis: each for axis, each in rule["axes"].items() if each.keys() <= known}
    measured = measures(rows, {"axes": axes})
    for name, test in rule["tests"].items():
        axis = test["of"].split(", ")[1]
        if axis in axes:
            gain = by_seed(measured[f"align, {axis}"]) - by_seed(measured[f"sft, {axis}"])
            found[name] = with_seeds(crossed.parts(gain), runs)
    return found


def with_seeds(found: crossed.Parts, runs: int) -> crossed.Parts:
    """Parts of differences as they are expected with other numbers of seeds: their mean squares over
    prompts have what prompts add once for each seed.
    """
    added = np.maximum(found.prompts - found.rest, 0) / found.runs
    prompts = found.rest + runs * added
    return found._replace(prompts=prompts, runs=runs, seed_free=runs - 1.0)


def point(measured: Mapping[int, Array]) -> drawing.Point:
    """A mean over seeds, with its interval."""
    return over_seeds([float(value.mean()) for value in measured.values()])
