"""Signals at any line of a run: it stops and continues to the same bytes, as if nothing had
happened.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import alignkit
from alignkit.cli import main
from tests.faults.case import HELD, LOST, SILENT, UNTIDY, Case, command
from tests.faults.runs import results

OURS = str(Path(alignkit.__file__).parent)
PLACES = 40  # per signal
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT, signal.SIGKILL)
STOPPED = (0, 75, 130)  # it was at its end, it stopped, it was interrupted


def cases(recipe: Path, whole: dict[str, str], scratch: Path) -> list[Case]:
    """Each signal at places that are spread over a run's calls of alignkit's functions."""
    log = scratch / "calls"
    _in_child(["run", str(recipe), "--out", str(scratch / "counted")], 0, signal.SIGTERM, log)
    calls = int(log.read_text().rpartition("calls: ")[2])
    places = [1 + place * calls // PLACES for place in range(PLACES)]
    return [
        Case(
            "signal",
            f"{number.name} at call {place} of {calls}",
            _continues(recipe, whole, place, number),
        )
        for number in SIGNALS
        for place in places
    ]


def _continues(
    recipe: Path, whole: dict[str, str], place: int, number: signal.Signals
) -> Callable[[Path], tuple[str, str]]:
    def run(folder: Path) -> tuple[str, str]:
        arguments = ["run", str(recipe), "--out", str(folder / "run")]
        code = _in_child(arguments, place, number, folder / "log")
        said = (folder / "log").read_text(encoding="utf-8", errors="replace")
        if (code not in STOPPED and code != -number) or "Traceback" in said:
            return UNTIDY, f"exit {code}\n{said}"
        again = command(arguments)
        if again.code:
            return LOST, f"{said}\n{again.text}"
        return (HELD if results(folder / "run") == whole else SILENT), f"{said}\n{again.text}"

    return run


def _in_child(arguments: Sequence[str], place: int, number: signal.Signals, log: Path) -> int:
    """Run the command in a process of its own, which sends itself a signal; its exit code, negative
    for a signal.
    """
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        if event == "call" and frame.f_code.co_filename.startswith(OURS):
            calls += 1
            if calls == place:
                os.kill(os.getpid(), number)

    for each in SIGNALS[:-1]:
        signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
    sys.setprofile(count)
    code = 1
    try:
        code = main(list(arguments))
    except KeyboardInterrupt:
        code = 130
    finally:
        sys.setprofile(None)
        print(f"calls: {calls}", flush=True)
        os._exit(code)
