"""The first screen: the intervals of each result, and what changed in one answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from made import make_run, rewritten

from alignkit_plugins.cells.earlier import with_earlier
from alignkit_plugins.compare.rows import Row, main_rows, plain
from alignkit_plugins.report import document as overview
from alignkit_plugins.report.document import page
from alignkit_plugins.report.facts import facts_of


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
- middle: null
  title: helpful
  note: ''
  rows:
  - {label: sft, style: '', text: '0.00', left: 4.5, width: 0.0, mean: 4.5}
  - {label: align@ppo, style: '', text: '0.50 [0.40, 0.60]', left: 36.9, width: 16.2, mean: 45.0}
  - {label: align@dpo, style: result, text: '1.095 [1.067, 1.123]', left: 91.0, width: 4.5, mean: 93.2}
- middle: null
  title: safety
  note: ''
  rows:
  - {label: sft, style: '', text: '0.00', left: 50.0, width: 0.0, mean: 50.0}
  - {label: align@dpo, style: result, text: '0.00 [-0.24, 0.24]', left: 4.5, width: 91.0, mean: 50.0}
- middle: 50
  title: preferred to sft by local_judge
  note: 'trained on it: no proof'
  rows:
  - {label: align@dpo, style: result, text: '31% [22, 40]', left: 22.0, width: 18.0, mean: 31.0}
- middle: null
  title: right
  note: lower is better
  rows:
  - {label: sft, style: '', text: '25% [0, 50]', left: 0.0, width: 50.0, mean: 25.0}
- middle: null
  title: flat
  note: ''
  rows:
  - {label: sft, style: '', text: '1.00', left: 50.0, width: 0.0, mean: 50.0}
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
    plots = json.dumps(overview.intervals(rows, "align@dpo"))
    assert json.loads(plots, parse_float=lambda x: round(float(x), 1)) == yaml.safe_load(PLOTS)


def test_the_prompt_follows_the_verdict(tmp_path: Path) -> None:
    facts = facts_of(make_run(tmp_path / "other"))
    loss = {**facts["samples"][-1], "kind": "loss"}
    more = {**facts, "samples": [{**loss, "stage": "other"}, *facts["samples"], loss]}
    shown = [
        overview.chosen(more, {"stage": "report", "outcome": outcome})
        for outcome in ("mixed", "nothing clear", "lost")
    ]
    assert [one and (one["stage"], one["kind"]) for one in shown] == [
        ("report", kind) for kind in ("gain", "random", "loss")
    ]
    kinds = {
        outcome: overview.chosen(facts, {"stage": "report", "outcome": outcome})["kind"]  # type: ignore[index]
        for outcome in ("gained", "mixed", "nothing clear", "lost")
    }
    # No loss is there
    assert kinds == {"gained": "gain", "mixed": "gain", "nothing clear": "random", "lost": "gain"}
