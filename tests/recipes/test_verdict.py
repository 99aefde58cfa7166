"""`alignkit verify`: equal results are confirmed; of others the first difference and its likely
cause are named.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from verified import contents, rewrite, verify

from alignkit.errors import NotReproduced


def test_a_run_is_reproduced_and_not_touched(
    original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, beside = contents(original), sorted(original.parent.iterdir())
    assert verify(original) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["sft: equal", "liked: equal", "align: equal", "report: equal"]
    assert contents(original) == before and sorted(original.parent.iterdir()) == beside


def edit_metrics(stage: Path, line: int, **values: Any) -> None:
    file = stage / "metrics.jsonl"
    rows = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
    rows[line] |= values
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    rewrite(stage)


def test_the_first_difference_is_named_with_its_size(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = run / "align"
    edit_metrics(stage, 1, reward=1000.0, time=0.0, tokens_per_second=1.0)
    weights = stage / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = min(tensors)
    tensors[name][0, 0] += 0.5
    save_file(tensors, weights, {"format": "pt"})
    rewrite(stage)
    assert verify(stage) == NotReproduced.exit_code == 7
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "align: DIFFERENT"
    assert lines[1] == "  adapter/adapter_model.safetensors: other bytes"
    assert lines[2].startswith("  metrics.jsonl: line 2.reward: 1000.0 -> ")
    assert lines[3] == "  different here: nothing that the record knows, so perhaps the machine"
    assert "error: not reproduced: align" in err


def test_times_are_no_difference(run: Path) -> None:
    edit_metrics(run / "sft", 0, time=0.0, tokens_per_second=1.0)
    assert verify(run / "sft") == 0


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda r: r["depends_on"]["versions"].update(torch="1.0"), "versions.torch: 1.0 -> "),
        (
            lambda r: r["depends_on"]["component"].update(source={"sft.py": "0" * 64}),
            "source.sft.py",
        ),
    ],
)
def test_the_likely_cause_is_named(
    run: Path, change: Any, cause: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_metrics(run / "sft", 0, loss=9.0)
    rewrite(run / "sft", change)
    assert verify(run / "sft") == 7
    out = capsys.readouterr().out
    assert cause in out.rpartition("different here: ")[2]


def test_replies_that_are_not_stored_are_not_asked_for(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "cache" / "asked.sqlite").unlink()
    assert verify(run / "align") == 6
    err = capsys.readouterr().err
    assert "asked: 4 replies are not stored" in err and "nothing is asked or paid for here" in err
    assert not list(run.parent.glob(".verify-*"))
