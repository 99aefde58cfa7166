"""Console lines, durations, and the metrics file of a run that was killed."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from alignkit.io import console
from alignkit.io.console import Metrics, Reporter, Terminal
from alignkit.io.text import duration
from tests.faults.disk import synced
from tests.rows import read_rows


@pytest.mark.parametrize(("seconds", "text"), [(7.31, "7.3s"), (65.9, "1m05s"), (3600.0, "60m00s")])
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


def test_a_pipe_gets_a_line_at_most_every_10_seconds_and_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr(console, "monotonic", lambda: clock[0])
    reporter, written = pipe()
    reporter.stage("align", 1, 2, "ppo")
    reporter.start("align", total=20, done=4, unit="iteration")
    metrics = {"loss": 1.23456, "reward": -1234.5, "kl": 0.0, "response_tokens": 31.0, "other": 3.0}
    for number in range(5, 21):
        clock[0] += 3
        with reporter.progress("sampling", 2) as done:
            done(1)
        reporter.advance(number, {**metrics, "tokens_per_second": 1034.0})
    said = "loss 1.23 reward -1234 kl 0 length 31 tok/s 1034"
    assert written.getvalue().splitlines() == [
        "align: stage 1 of 2, ppo",
        f"align iteration 5/20 {said} (3s, 45s left)",
        f"align iteration 9/20 {said} (15s, 33s left)",
        f"align iteration 13/20 {said} (27s, 21s left)",
        f"align iteration 17/20 {said} (39s, 9s left)",
        f"align iteration 20/20 {said} (48s)",
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
    reporter.stop()
    with reporter.progress("scoring", 2) as done:
        clock[0] += 10
        done(1)
    with reporter.progress("asking", 8) as done:  # the first may be of many that end together
        for count in (1, 3):
            clock[0] += 20
            done(count)
    for _ in range(2):
        reporter.say("align: warning: few rows")
    assert written.getvalue().splitlines() == [
        "report: stage 6 of 6, evaluate",
        "report: sampling from sft 2/4 (12s, 12s left)",
        "report: sampling from sft 4/4 (24s)",
        "scoring 1/2 (10s, 10s left)",
        "asking 1/8 (20s)",
        "asking 3/8 (40s, 1m06s left)",
        "align: warning: few rows",
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
    dumb = Console(force_terminal=True, _environ={"TERM": "dumb"})
    assert reporter.live and not Reporter(dumb).live


def test_latin_1_and_no_color_are_enough() -> None:
    code = (
        "from rich.console import Console; from alignkit.io.console import Reporter; import sys; "
        "r = Reporter(Console(stderr=True, highlight=False, force_terminal=True, "
        "width=40)); r.start('align', 8, unit='iteration'); [r.advance(n, {'loss': 1 "
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
        [sys.executable, "-c", code], capture_output=True, env=environment, check=False
    )
    text = done.stderr.decode("latin-1")
    assert done.returncode == 0 and "loss 0.125" in text and "caf\u00e9" in text, text
    assert done.stdout == b"a table ?? ?\n"
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", text)


# The stages of a run


def plain_text(shown: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())


def test_a_terminal_shows_the_running_stage_and_the_log_has_all_that_is_said(
    tmp_path: Path,
) -> None:
    reporter, shown = terminal()
    reporter.say("the first line")
    reporter.log.path = tmp_path / "run.log"
    reporter.stage("sft", 1, 3, "sft")
    reporter.start("sft", 2)
    reporter.advance(2, {"loss": 1.25})
    reporter.stop()
    reporter.stop("sft: done in 1m05s: groups 4")
    with reporter.progress("sampling", 2) as done:
        done(1)
    assert shown.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K"), "the cursor is back"
    reporter.stop()
    reporter.result("a report\nof lines")
    lines = plain_text(shown).splitlines()
    assert "the first line" in lines and "sft: done in 1m05s: groups 4" in lines
    for running in ("sft step 2/2 loss 1.25", "sampling 1/2"):
        assert [line for line in lines if running in line]
    log = (tmp_path / "run.log").read_text(encoding="utf-8")
    stamp = re.compile(r"^[0-9-]{10}T[0-9:]{8}Z ", re.MULTILINE)
    assert (
        stamp.sub("", log)
        == """\
the first line
sft: stage 1 of 3, sft
sft step 2/2 loss 1.25 (0s)
sft: done in 1m05s: groups 4
a report
of lines
"""
    )


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
    handles: list[int] = []
    with synced(handles.append):
        size = metrics.sync()
    assert len(handles) == 1
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
    seen: list[Any] = []
    metrics = Metrics(
        tmp_path / "metrics.jsonl", 0, lambda step, metrics: seen.append((step, metrics)), "sft"
    )
    values = {"loss": 1.23456789, "rate": 0.000123456789, "large": 123456789.0, "ok": True}
    metrics.write(1234567, **values)
    assert metrics.path.read_text(encoding="utf-8") == (
        '{"stage": "sft", "step": 1234567, "loss": 1.23457, "rate": 0.000123457, '
        '"large": 123457000.0, "ok": true, "time": 1765432109.877}\n'
    )
    metrics.write(win=0.5)  # of a step of the recipe, which counts nothing
    assert read_rows(metrics.path)[1].keys() == {"stage", "win", "time"}
    assert seen == [(1234567, values), (2, {"win": 0.5})]
