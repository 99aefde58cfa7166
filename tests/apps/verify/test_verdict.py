"""`alignkit verify`: equal results are confirmed; of others the first difference and its likely cause are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from verified import contents, rewrite, verify

from alignkit.errors import NotReproduced
from alignkit.stopping import Stopped
from alignkit_apps.verify.rerun import Rerun


def test_a_run_is_reproduced_and_not_touched(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, beside = contents(original), sorted(original.parent.iterdir())
    assert verify(original) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" (")[0] for line in lines] == [
        "sft: equal",
        "liked: equal",
        "align: equal",
        "report: equal",
        "verified: 4 stages, and all is equal",
    ]
    assert contents(original) == before and sorted(original.parent.iterdir()) == beside


def test_only_the_first_iterations_are_run(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(original, "--iterations", "1") == 0
    out = capsys.readouterr().out
    assert out.count("equal (the first 1 lines of metrics") == 2  # liked has one step, and so is complete
    assert "verified: 3 stages, and all is equal, as far as the first 1 go" in out
    assert "not verified, because --iterations is given: report" in out
    assert verify(original / "report", "--iterations", "1") == 2
    assert "report: no iterations; leave out --iterations" in capsys.readouterr().err


def edit_metrics(stage: Path, line: int, **values: Any) -> None:
    file = stage / "metrics.jsonl"
    rows = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
    rows[line] |= values
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    rewrite(stage)


def test_the_first_difference_is_named_with_its_size(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert lines[1].startswith("  metrics.jsonl: step 2, reward: 1000.0 in the run, ") and "(off by 1e+03)" in lines[1]
    count = len(tensors)
    file = "adapter/adapter_model.safetensors"
    assert lines[2] == f"  {file}: 1 of {count} tensors, the first: {name} by up to 0.5"
    assert lines[3].startswith("  likely cause: nothing that the record knows is different here: a plugin that draws ")
    assert "error: not reproduced: align" in err
    assert verify(stage, "--iterations", "1") == 0, "the second iteration was not run"
    assert verify(stage, "--iterations", "2") == 7


def test_times_are_no_difference(run: Path) -> None:
    edit_metrics(run / "sft", 0, time=0.0, tokens_per_second=1.0)
    assert verify(run / "sft") == 0


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda r: r["machine"].update(processes=2), "processes 2 -> 1"),
        (lambda r: r["machine"].update(threads=63), "threads 63 -> {threads} (set OMP_NUM_THREADS=63)"),
        (lambda r: r["machine"].update(instructions="SVE9"), "instructions SVE9 -> "),
        (lambda r: r["depends_on"]["versions"].update(torch="1.0"), "torch 1.0 -> "),
        (lambda r: r["depends_on"].update(kernels="plain"), "kernels plain -> fast (set ALIGNKIT_KERNELS=plain)"),
        (lambda r: r["depends_on"]["component"].update(source={"sft.py": "0" * 64}), "the code of plugin sft"),
        (lambda r: None, "nothing that the record knows is different here"),
    ],
)
def test_the_likely_cause_is_named(run: Path, change: Any, cause: str, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    edit_metrics(run / "sft", 0, loss=9.0)
    rewrite(run / "sft", change)
    assert verify(run / "sft", "--iterations", "1") == 7
    out = capsys.readouterr().out
    assert f"  likely cause: {cause.format(threads=torch.get_num_threads())}" in out


def test_the_code_of_a_plugin_is_a_cause(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = run.parent / "plugin.py"
    plugin.write_text(plugin.read_text(encoding="utf-8").replace("SCALE = 1.0", "SCALE = 0.5"), encoding="utf-8")
    assert verify(run / "align") == 7
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("  metrics.jsonl: step 1, reward: ")
    assert "  likely cause: the code of plugin asked has changed" in lines


def test_replies_that_are_not_stored_are_not_asked_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "cache" / "asked.sqlite").unlink()
    assert verify(run / "align") == 6
    err = capsys.readouterr().err
    assert "asked: 4 of 4 replies are not stored" in err and "nothing is asked or paid for here" in err
    assert "stage 'align' was run again, and failed" in err
    assert not list(run.parent.glob(".run.verify-*"))


def test_a_signal_is_no_failure(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(self: Rerun) -> None:
        raise Stopped("stopped: SIGTERM")

    monkeypatch.setattr(Rerun, "should_stop", stopped)
    assert verify(run / "sft") == Stopped.exit_code
    said = capsys.readouterr().err
    assert "verify was interrupted in stage 'sft'" in said and "failed" not in said
