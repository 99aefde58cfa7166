"""Samples: the largest gains and losses, and some at random, each prompt once."""

import json
from pathlib import Path
from typing import Any

from made import make_run

from alignkit_plugins.report.swaps import samples
from tests.rows import write_rows


def read(folder: Path) -> tuple[Path, dict[str, Any]]:
    return folder / "report", json.loads((folder / "report" / "evaluation.json").read_text())


def test_each_kind_is_there_and_no_prompt_twice(tmp_path: Path) -> None:
    folder, summary = read(make_run(tmp_path / "run"))
    found = samples("report", folder, {**summary, "headline": "safety"})
    assert [sample["kind"] for sample in found] == [*["gain"] * 5, *["loss"] * 5, *["random"] * 5]
    assert len({sample["row"] for sample in found}) == 15
    assert [sample["difference"] for sample in found[:10]] == [0.5] * 5 + [-0.5] * 5
    assert found == samples("report", folder, {**summary, "headline": "safety"})


def test_answers_are_before_and_after(tmp_path: Path) -> None:
    folder, summary = read(make_run(tmp_path / "run"))
    first = samples("report", folder, summary)[0]
    assert first["row"] == 20 and first["difference"] == 1.19
    assert first["prompt"] == [{"role": "user", "content": "question 19 "}]
    assert [
        (one["policy"], one["text"], one["score"], one["tokens"]) for one in first["answers"]
    ] == [
        ("sft", "before 19", 0.0, 10),
        ("align", "after 19 ", 1.19, 20),
    ]


def test_a_policy_without_a_baseline_and_turns_are_shown(tmp_path: Path) -> None:
    folder, summary = read(make_run(tmp_path / "run"))
    turns = [{"role": "assistant", "content": "calls"}, {"role": "tool", "content": None}]
    responses = [{"source": "align", "messages": turns, "scores": {"helpful": 2.0}}]
    write_rows(
        folder / "samples.jsonl",
        [{"prompt": [{"role": "user", "content": "x" * 9000}], "responses": responses}],
    )
    (found,) = samples("report", folder, {**summary, "baseline": None, "policies": ["align"]})
    assert found["kind"] == "random" and found["difference"] is None
    assert found["answers"][0]["text"] == "[assistant] calls\n\n[tool] "
    assert found["prompt"][0]["content"].endswith("x... (7,000 more characters)")
