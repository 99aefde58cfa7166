"""Samples: the largest gains and losses, and some at random, each prompt once."""

from pathlib import Path
from typing import Any

import yaml
from made import make_run

from alignkit_plugins.report.samples import samples
from tests.rows import read_json, write_rows


def read(folder: Path) -> tuple[Path, dict[str, Any]]:
    return folder / "report", read_json(folder / "report" / "evaluation.json")


def test_each_kind_is_there_and_no_prompt_twice(tmp_path: Path) -> None:
    folder, summary = read(make_run(tmp_path / "run"))
    found = samples("report", folder, {**summary, "headline": "safety"})
    assert [sample["kind"] for sample in found] == [*["gain"] * 5, *["loss"] * 5, *["random"] * 5]
    assert len({sample["row"] for sample in found}) == 15
    assert [sample["difference"] for sample in found[:10]] == [0.5] * 5 + [-0.5] * 5
    assert found == samples("report", folder, {**summary, "headline": "safety"})
    lower = [{**row, "lower": True} for row in summary["results"]]
    found = samples("report", folder, {**summary, "headline": "safety", "results": lower})
    assert [sample["difference"] for sample in found[:10]] == [-0.5] * 5 + [0.5] * 5


FIRST = """
row: 20
difference: 1.19
prompt: [{role: user, content: "question 19 "}]
answers:
- {policy: sft, text: before 19, score: 0.0, tokens: 10, truncated: false}
- {policy: align, text: "after 19 ", score: 1.19, tokens: 20, truncated: false}
"""


def test_answers_are_before_and_after(tmp_path: Path) -> None:
    first = samples("report", *read(make_run(tmp_path / "run")))[0]
    wanted = yaml.safe_load(FIRST)
    assert {key: first[key] for key in wanted} == wanted


def test_a_policy_without_a_baseline_and_turns_are_shown(tmp_path: Path) -> None:
    folder, summary = read(make_run(tmp_path / "run"))
    turns = [{"role": "assistant", "content": "calls"}, {"role": "tool", "content": None}]
    responses = [{"source": "align", "messages": turns, "scores": {"helpful": 2.0}}]
    responses.append({"source": "align", "text": "again", "scores": {"helpful": 4.0}})
    write_rows(
        folder / "samples.jsonl",
        [{"prompt": [{"role": "user", "content": "x" * 9000}], "responses": responses}],
    )
    assert samples("report", folder, summary) == []  # nothing is there to compare
    (found,) = samples("report", folder, {**summary, "baseline": None, "policies": ["align"]})
    assert found["kind"] == "random" and found["difference"] is None
    assert found["answers"][0]["text"] == "[assistant] calls\n\n[tool] "
    assert found["answers"][0]["score"] == 3.0  # of both answers
    assert found["prompt"][0]["content"].endswith("x... (7,000 more characters)")
