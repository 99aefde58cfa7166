"""Many runs for people: the section of report.html, CSV, and curves over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignkit.contract.report import Report
from alignkit_plugins.compare.rows import Row, plain
from alignkit_plugins.report import cells, figures
from alignkit_plugins.report.document import page
from alignkit_plugins.report.drawing import Line
from tests.rows import write_rows

RISES, FALLS = Line([1, 2, 3], [0.0, 1.0, 2.0]), Line([1, 2, 3], [2.0, 1.0, 0.0])
BOTH: Any = [1, 2, 3], [1.0, 1.0, 1.0], [[0.0, 2.0], [1.0, 1.0], [0.0, 2.0]]
# The second of two seeds, and what both make: it may have ended early, or have other steps
OVER_SEEDS: list[Any] = [
    ({"kl": FALLS}, {"kl": BOTH}),
    ({"kl": Line([1, 2], [2.0, 1.0])}, {"kl": tuple(part[:2] for part in BOTH)}),
    ({"kl": Line([1, 3], [2.0, 1.0])}, {}),
    ({}, {}),
]


@pytest.mark.parametrize(("second", "expected"), OVER_SEEDS)
def test_a_curve_over_seeds_has_their_mean_and_range(second: Any, expected: Any) -> None:
    found = cells.over_seeds([{"kl": RISES}, second])
    assert {name: line[:3] for name, line in found.items()} == expected


@pytest.fixture
def facts(tmp_path: Path) -> dict[str, Any]:
    """Of two variants with two seeds: one stage varies with them, one only with the seed."""
    values, folders, results = list[Any](), list[str](), list[Any]()
    for at, name in enumerate(["ppo", "<grpo>"]):
        for seed in (3, 4):
            folder = tmp_path / "many" / "cells" / f"{name}{seed}"
            values.append({"seed": str(seed), "stages.align.algorithm": name})
            folders.append(str(folder))
            for stage, reward in (("align", at + seed), ("sft", seed)):
                (folder / stage).mkdir(parents=True)
                steps = [{"step": step, "reward": reward * step} for step in (1, 2)]
                write_rows(folder / stage / "metrics.jsonl", steps)
        estimate = {"mean": 3.0, "low": 2.0, "high": 4.0, "n": 9, "seeds": [2.5, 3.5]}
        results.append(plain(Row(name, "helpful", "reward", estimate, tested=True)))
    report = {"seeds": [3, 4], "results": results, "notes": []}
    return {"cells": values, "folders": folders, "evaluations": {"report": report}}


def test_the_page_of_cells_has_a_table_charts_and_curves_of_what_varies(
    facts: dict[str, Any],
) -> None:
    found = cells.section(Report(["One."]), facts)
    (helpful,), ((stage, (reward,)),) = found["dots"], found["curves"].items()
    assert ">ppo<" in helpful.drawing.body and helpful.drawing.body.count('"seed"') == 4
    assert stage == "align" and reward.drawing.body.count('"band') == 2
    text = page(None, found)
    assert "<h1>many</h1>" in text and "&lt;grpo&gt;" in text and "<grpo>" not in text


def test_a_variant_has_its_color_where_another_one_lacks_the_metric() -> None:
    variants = {"rs": {"kl": RISES}, "ppo": {"kl": FALLS, "clip_fraction": RISES}}
    _, clipped = figures.of_stage("align", variants)
    assert clipped.words == "align: Clipped; ppo from 0 to 2"
    assert '"c1"' in clipped.drawing.body and "c0" not in clipped.drawing.body


def test_csv_has_a_line_per_seed_and_one_of_all(facts: dict[str, Any]) -> None:
    key = ["report", "ppo", "helpful"]
    assert cells.lines_of(facts)[1:4] == [
        [*key, 3, 2.5, "", "", ""],
        [*key, 4, 3.5, "", "", ""],
        [*key, "all", 3.0, 2.0, 4.0, 9],
    ]
