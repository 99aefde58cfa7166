"""Console lines, durations, and the metrics file of a run that was killed."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from alignkit.io import console
from alignkit.io.console import Metrics, Reporter, Terminal
from alignkit.io.text import duration
from tests.rows import read_rows


@pytest.mark.parametrize(("seconds", "text"), [(7.31, "7.3s"), (65.0, "1m05s"), (3600.0, "60m00s")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def terminal(width: int = 80) -> tuple[Reporter, io.StringIO]:
    """A reporter in a terminal, and what it shows."""
    shown = io.StringIO()
    console = Console(
        file=shown, force_terminal=True, width=width, highlight=False, _environ={"TERM": "xterm"}
    )
    return Reporter(console, console), shown


def pipe() -> tuple[Reporter, io.StringIO]:
    written = io.StringIO()
    return Reporter(Console(file=written, highlight=False)), written


def test_a_pipe_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter()
    reporter.start("sft", total=2)
    reporter.advance(2, {"loss": 1.23456, "other": 3.0})
    assert capsys.readouterr().err == "sft step 2/2 loss 1.23 (0s)\n"


def test_a_pipe_gets_a_line_at_most_every_10_seconds_and_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr(console, "monotonic", lambda: clock[0])
    reporter, written = pipe()
    reporter.start("align", total=20, done=4, unit="iteration")
    for number in range(5, 21):
        clock[0] += 3
        reporter.advance(number, {"tokens_per_second": 5.0})
    assert written.getvalue().splitlines() == [
        "align iteration 5/20 tok/s 5 (3s, 45s left)",
        "align iteration 9/20 tok/s 5 (15s, 33s left)",
        "align iteration 13/20 tok/s 5 (27s, 21s left)",
        "align iteration 17/20 tok/s 5 (39s, 9s left)",
        "align iteration 20/20 tok/s 5 (48s)",
    ]


def test_the_parts_of_a_step_have_lines_only_if_they_take_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr(console, "monotonic", lambda: clock[0])
    reporter, written = pipe()
    reporter.stage("report", 6, 6, "evaluate")
    for seconds in (1, 6):
        with reporter.progress("sampling from sft", 4) as done:
            for count in range(1, 5):
                clock[0] += seconds
                done(count)
    assert written.getvalue().splitlines() == [
        "report: stage 6 of 6, evaluate",
        "report: sampling from sft 2/4 (12s, 12s left)",
        "report: sampling from sft 4/4 (24s)",
    ]


def test_the_live_line_is_removed_and_lines_stay_above_it() -> None:
    reporter, shown = terminal()
    reporter.start("sft", total=3)
    reporter.advance(1, {"loss": 1.5})
    reporter.say("sft: a fact")
    reporter.stop()
    reporter.say("sft: done in 3.2s: groups 4")
    text = shown.getvalue()
    assert "sft step 1/3" in text and "loss 1.5" in text
    rest = text[text.rindex("sft step") :]
    assert "\x1b[2K" in rest[: rest.index("done in")]  # the live line is erased before the last one
    assert "sft: a fact\n" in text


def trained(reporter: Reporter, steps: int) -> None:
    """Iterations whose reward rises, and whose length stays."""
    reporter.start("align", steps, unit="iteration")
    for step in range(1, steps + 1):
        metrics = {
            "loss": 0.5,
            "reward": step / 10,
            "kl": 0.0,
            "response_tokens": 31.0,
            "tokens_per_second": 1034.0,
        }
        reporter.advance(step, metrics)


def test_a_plain_line_has_the_numbers_of_its_step() -> None:
    reporter, written = pipe()
    trained(reporter, 8)
    assert written.getvalue().splitlines() == [
        "align iteration 1/8 loss 0.5 reward 0.1 kl 0 length 31 tok/s 1034 (0s, 0s left)",
        "align iteration 8/8 loss 0.5 reward 0.8 kl 0 length 31 tok/s 1034 (0s)",
    ]


@pytest.mark.parametrize("place", ["pipe", "terminal"])
def test_latin_1_and_no_color_are_enough(place: str) -> None:
    code = (
        "from rich.console import Console; from alignkit.io.console import Reporter; import sys; "
        "r = Reporter(Console(stderr=True, highlight=False, force_terminal=sys.argv[1] == "
        "'terminal', width=40)); r.start('align', 8, unit='iteration'); [r.advance(n, {'loss': 1 "
        "/ n, 'reward': n * 100.5, 'tokens_per_second': 9.0}) for n in range(1, 9)]; r.stop(); "
        "r.say('caf\u00e9 \u202e'); r.result('a table \u2500\u2500 \u5b57')"
    )
    environment = {
        **os.environ,
        "PYTHONIOENCODING": "latin-1:replace",
        "NO_COLOR": "1",
        "TERM": "xterm",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, place], capture_output=True, env=environment, check=False
    )
    text = done.stderr.decode("latin-1")
    assert done.returncode == 0 and "loss 0.125" in text and "caf\u00e9" in text, text
    assert done.stdout == b"a table ?? ?\n"
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", text)


# The stages of a run


def plain_text(shown: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())


def test_a_terminal_shows_the_running_stage_and_a_line_for_each_that_is_done(
    tmp_path: Path,
) -> None:
    reporter, shown = terminal()
    reporter.log.path = tmp_path / "run.log"
    reporter.stage("sft", 1, 3, "sft")
    reporter.say("loading a base model")
    reporter.start("sft", 2)
    reporter.advance(2, {"loss": 1.25})
    reporter.stop()
    reporter.stop("sft: done in 1m05s: groups 4")
    reporter.stop("align: unchanged, reused")
    reporter.stage("report", 3, 3, "evaluate")
    with reporter.progress("sampling", 2) as done:
        done(0)
        done(1)
    reporter.stop()
    lines = plain_text(shown).splitlines()
    assert "sft: done in 1m05s: groups 4" in lines and "align: unchanged, reused" in lines
    assert any("sft step 2/2 loss 1.25" in line for line in lines) and any(
        "sampling 1/2" in line for line in lines
    )
    assert "loading a base model" in lines
    log = (tmp_path / "run.log").read_text(encoding="utf-8")
    for line in ("sft: stage 1 of 3, sft", "loading a base model", "sft: done in 1m05s: groups 4"):
        assert f"Z {line}\n" in log


def test_a_pipe_that_nobody_reads_does_not_end_a_run(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as gone:
        reporter = Reporter(Terminal(file=gone), Terminal(file=gone))
        reporter.log.path = tmp_path / "run.log"
        for number in range(3):
            reporter.say(f"line {number}")
            reporter.result(f"result {number}")
        assert (tmp_path / "run.log").read_text(encoding="utf-8").count("\n") == 6
        with contextlib.suppress(BrokenPipeError):
            gone.close()


def test_metrics_after_the_last_checkpoint_are_written_again(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.write(step=1, loss=float("nan"))
    size = metrics.sync()
    metrics.write(step=2, loss=1.0)
    Metrics(tmp_path / "metrics.jsonl", size).write(step=2, loss=0.5)
    assert [(row["step"], row["loss"]) for row in read_rows(tmp_path / "metrics.jsonl")] == [
        (1, "nan"),
        (2, 0.5),
    ]


def test_a_metric_called_time_is_refused(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    with pytest.raises(TypeError, match="'time'"):
        metrics.write(step=1, time=3.5)
    assert metrics.path.read_text(encoding="utf-8") == ""


def test_metrics_have_the_time_and_six_significant_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.time, "time", lambda: 1765432109.87654)
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.write(
        stage="sft", step=1234567, loss=1.23456789, rate=0.000123456789, large=123456789.0, ok=True
    )
    expected = {
        "stage": "sft",
        "step": 1234567,
        "loss": 1.23457,
        "rate": 0.000123457,
        "large": 123457000.0,
        "ok": True,
    }
    assert read_rows(tmp_path / "metrics.jsonl") == [{**expected, "time": 1765432109.877}]


def test_the_log_has_all_that_is_said_and_plain_progress_even_in_a_terminal(tmp_path: Path) -> None:
    reporter, shown = terminal()
    reporter.say("the first line")
    reporter.log.path = tmp_path / "run.log"
    reporter.start("sft", total=1)
    reporter.advance(1, {"loss": 0.5})
    reporter.stop()
    reporter.say("sft: done in 3.2s")
    reporter.result("a report\nof lines")
    lines = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    expected = [
        "the first line",
        "sft step 1/1 loss 0.5 (0s)",
        "sft: done in 3.2s",
        "a report",
        "of lines",
    ]
    assert [line.partition("Z ")[2] for line in lines] == expected
    assert "\x1b" in shown.getvalue() and all(
        re.match(r"[0-9-]{10}T[0-9:]{8}Z ", line) for line in lines
    )
