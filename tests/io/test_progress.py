"""Console lines, durations, and the metrics file of a run that was killed."""

import json
from pathlib import Path

import pytest

from alignkit.io.progress import Metrics, Reporter, duration


@pytest.mark.parametrize(("seconds", "text"), [(7.31, "7.3s"), (65.0, "1m05s"), (3600.0, "60m00s")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_pipe_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter()
    reporter.start("sft", total=2)
    reporter.advance(2, {"loss": 1.23456, "other": 3.0})
    assert capsys.readouterr().err == "sft 2/2 loss 1.23 (0s left)\n"


def test_metrics_after_the_last_checkpoint_are_written_again(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.write(step=1, loss=float("nan"))
    size = metrics.sync()
    metrics.write(step=2, loss=1.0)
    Metrics(tmp_path / "metrics.jsonl", size).write(step=2, loss=0.5)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [{"step": 1, "loss": "nan"}, {"step": 2, "loss": 0.5}]
