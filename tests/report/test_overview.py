"""The first screen: the intervals of each result, and what changed in one answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made import make_run, rewritten

from alignkit_plugins.compare.rows import Row, main_rows, plain
from alignkit_plugins.report import document as overview
from alignkit_plugins.report.document import page
from alignkit_plugins.report.facts import facts_of
from alignkit_plugins.report.swaps import with_earlier


@pytest.fixture
def summary(tmp_path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(
        (make_run(tmp_path / "run") / "report" / "evaluation.json").read_text()
    )
    return value


def test_only_independent_raters_make_a_verdict_green(
    tmp_path: Path, summary: dict[str, Any]
) -> None:
    folder = make_run(tmp_path / "own")
    for own, style in ((True, "even"), (False, "good")):
        results = [row for row in summary["results"] if row["kind"] != "judge"]
        for row in results:
            if row["metric"] == "helpful":
                row["trained_on"] = own
        known = {**summary, "results": results}
        (folder / "report" / "evaluation.json").write_text(json.dumps(known))
        rewritten(folder / "report")
        text = page(facts_of(folder))
        assert f'class="verdict {style}"' in text and 'class="state good' not in text


def test_the_plot_has_a_row_per_result_and_metric(summary: dict[str, Any]) -> None:
    mean = {"mean": 0.5, "low": 0.4, "high": 0.6}
    results = [plain(Row("align@ppo", "helpful", "reward", mean))]
    names = {"policy": "align", "result": "align@dpo", "against": "align@ppo"}
    pair = {**names, "results": results}
    rows = main_rows(with_earlier(summary, [pair]))
    helpful, safety, judge = overview.intervals(rows, "align@dpo")
    assert [row["label"] for row in helpful["rows"]] == ["sft", "align@ppo", "align@dpo"]
    assert [row["style"] for row in helpful["rows"]] == ["", "", "result"]
    sft, ppo, dpo = helpful["rows"]
    places = [sft["mean"], ppo["left"], ppo["mean"], ppo["left"] + ppo["width"], dpo["left"]]
    assert places[0] > 0 and places == sorted(places) and places[-1] < 100
    assert ppo["text"] == "0.50 [0.40, 0.60]" and len(safety["rows"]) == 2
    assert (judge["title"], judge["middle"]) == ("preferred to sft by local_judge", 50.0)
    bar = judge["rows"][0]
    assert (bar["mean"], bar["left"], bar["width"]) == (31.0, 22.0, 18.0)


def test_shares_have_the_axis_from_0_to_100() -> None:
    share = {"mean": 0.25, "low": 0.0, "high": 0.5}
    row = Row("sft", "helpful", "metric", share, percent=True, lower=True)
    (panel,) = overview.intervals([row], "align")
    assert panel["note"] == "lower is better"
    shown = {key: panel["rows"][0][key] for key in ("text", "left", "width", "mean")}
    assert shown == {"text": "25% [0, 50]", "left": 0.0, "width": 50.0, "mean": 25.0}


def test_the_prompt_follows_the_verdict(tmp_path: Path) -> None:
    facts = facts_of(make_run(tmp_path / "other"))
    kinds = {
        outcome: overview.chosen(facts, {"stage": "report", "outcome": outcome})["kind"]  # type: ignore[index]
        for outcome in ("gained", "mixed", "nothing clear", "lost")
    }
    # No loss is there
    assert kinds == {"gained": "gain", "mixed": "gain", "nothing clear": "random", "lost": "gain"}
