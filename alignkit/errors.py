"""What can go wrong and who is told: each class carries the exit code that the command line ends with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class AlignkitError(Exception):
    """Shown to the user as one message without a traceback; `exit_code` is the process's."""

    exit_code = 1


class RunFailed(AlignkitError):
    """Something failed while a stage was running; the run can be continued."""

    exit_code = 1


class RecipeError(AlignkitError):
    """A recipe, an override or the usage is wrong; nothing was started. Holds every problem found."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]):
        self.problems = list(problems)
        super().__init__("\n\n".join(str(problem) for problem in self.problems))


class PluginError(AlignkitError):
    """A plugin is missing, broken or misbehaves; the message names it."""

    exit_code = 3


class DataError(AlignkitError):
    """Rows that cannot be used were found: the message names file, row and reason."""

    exit_code = 4


class OutOfResource(AlignkitError):
    """Memory or disk ran out."""

    exit_code = 5


class RemoteError(AlignkitError):
    """A remote judge or reward stayed unavailable after all retries; the run can be continued."""

    exit_code = 6


class BadRow(Exception):
    """Raised by a format's `read` for a row it cannot use; the reader adds file and row number."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a recipe: where, what, and what to do.

    `line` and `column` count from 1; 0 means the place is not in a file (an override, say).
    """

    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    length: int = 1
    source: str = ""
    help: str = ""

    def __str__(self) -> str:
        lines = [f"error: {self.message}"]
        if self.file:
            place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
            lines.append(f"  --> {place}")
        if self.source:
            number = str(self.line)
            lines.append(f"{number} | {self.source}")
            lines.append(" " * (len(number) + 3 + self.column - 1) + "^" * max(1, self.length))
        if self.help:
            lines.append(f"  help: {self.help}")
        return "\n".join(lines)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean 'dpo'?` for the nearest of `known`, or an empty string."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else ""
