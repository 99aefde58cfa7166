"""The first screen: the intervals of each result, and what changed in one answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made import make_run, rewritten

from alignkit_plugins.cells.earlier import with_earlier
from alignkit_plugins.compare.rows import Row, main_rows, plain
from alignkit_plugins.report import document as overview
from alignkit_plugins.report.document import page
from alignkit_plugins.report.facts import facts_of
from alignkit_plugins.report.figures import intervals
from tests.rows import cells


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


PLOTS = """
helpful | | helpful: sft 0.00, align@ppo 0.50 [0.40, 0.60], align@dpo 1.095 [1.067, 1.123]
safety | | safety: sft 0.00, align@dpo 0.00 [-0.24, 0.24]
preferred to sft by local_judge | trained on it: no proof | preferred to sft by local_judge: align@dpo 31% [22, 40]
right | lower is better | right: sft 25% [0, 50]
flat | | flat: sft 1.00
"""


def test_the_plot_has_a_row_per_result_and_metric(summary: dict[str, Any]) -> None:
    mean, share = {"mean": 0.5, "low": 0.4, "high": 0.6}, {"mean": 0.25, "low": 0.0, "high": 0.5}
    right = Row("sft", "right", "metric", share, percent=True, lower=True)
    summary["results"].append(plain(right))
    summary["results"].append(plain(Row("sft", "flat", "metric", {"mean": 1.0})))
    results = [plain(Row("align@ppo", "helpful", "reward", mean, trained_on=True))]
    names = {"policy": "align", "result": "align@dpo", "against": "align@ppo"}
    pair = {**names, "results": results}
    rows = main_rows(with_earlier(summary, [pair]))
    drawn = intervals(rows, "align@dpo")
    assert [(one.title, one.note, one.words) for one in drawn] == cells(PLOTS)
    helpful = drawn[0].drawing.body
    assert helpful.count('"mean "') == 2 and helpful.count('"mean result"') == 1
    assert ">align@ppo 0.50 [0.40, 0.60]<" in helpful


def test_the_prompt_follows_the_verdict(tmp_path: Path) -> None:
    facts = facts_of(make_run(tmp_path / "other"))
    loss = {**facts["samples"][-1], "kind": "loss"}
    more = {**facts, "samples": [{**loss, "stage": "other"}, *facts["samples"], loss]}
    shown = [
        overview.chosen(more, {"stage": "report", "outcome": outcome})
        for outcome in ("mixed", "nothing clear", "lost")
    ]
    assert [(one[0]["stage"], one[0]["kind"]) for one in shown] == [
        ("report", kind) for kind in ("gain", "random", "loss")
    ]
    kinds = {
        outcome: overview.chosen(facts, {"stage": "report", "outcome": outcome})[0]["kind"]
        for outcome in ("gained", "mixed", "nothing clear", "lost")
    }
    # No loss is there
    assert kinds == {"gained": "gain", "mixed": "gain", "nothing clear": "random", "lost": "gain"}
