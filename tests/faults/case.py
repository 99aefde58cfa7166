"""One fault, and what became of it."""

from __future__ import annotations

import contextlib
import io
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from alignkit.cli import main

HELD, UNTIDY, SILENT, LOST, HUNG = "held", "untidy", "silent", "lost", "hung"
TIDY_CODES = (1, 2, 3, 4, 5, 6, 75)
LIMIT = 120  # seconds


@dataclass(frozen=True)
class Case:
    """A fault. run: injects it, and returns the outcome with details for whoever looks into it."""

    family: str
    name: str
    run: Callable[[Path], tuple[str, str]]


@dataclass(frozen=True)
class Said:
    """What a command did: its exit code and its output."""

    code: int
    text: str

    @property
    def tidy(self) -> bool:
        """Whether it succeeded, or refused in words."""
        untidy = (
            "Traceback (most recent call last)" in self.text or "error: unexpected " in self.text
        )
        acts = any(character in self.text for character in "\x1b\x07\x9b")
        return self.code in (0, *TIDY_CODES) and not untidy and not acts


class TooLong(BaseException):
    """Raised by the alarm."""


def command(arguments: Sequence[str]) -> Said:
    """Run the command line in this process. Raises TooLong after LIMIT seconds."""
    text, rang = io.StringIO(), []

    def ring(number: int, frame: FrameType | None) -> None:
        rang.append(number)
        raise TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LIMIT)
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            code = main(list(arguments))
    except BaseException as error:  # whatever it is, a person would have seen it
        text.write("".join(traceback.format_exception(error)))
        code = -1
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if rang:  # whoever caught it
        raise TooLong
    return Said(code, text.getvalue())


def refused(arguments: Sequence[str]) -> tuple[str, str]:
    """A command that may succeed or refuse, as long as it does so in words."""
    said = command(arguments)
    return (HELD if said.tidy else UNTIDY), said.text
