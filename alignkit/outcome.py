"""How a command ended, as one JSON document: `alignkit --json COMMAND`, or a command's own `--json` if it fails."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from typing import TextIO

from alignkit.errors import Problem, RecipeError, message_of
from alignkit.io.credentials import redacted


@dataclass(frozen=True)
class Mistake:
    """One error. code: the exit code of its kind. file: or the override; empty if the error has no place.

    line, column: counted from 1; 0 means that the place is not in a file. help: what to do; may be empty.
    """

    code: int
    message: str
    file: str
    line: int
    column: int
    help: str


@dataclass(frozen=True)
class Outcome:
    """What a command ended with; all mistakes of a recipe are in it."""

    exit_code: int
    errors: list[Mistake]

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)


def outcome_of(error: BaseException | None, code: int) -> Outcome:
    """The outcome of a command that ended with an error, or with none, and an exit code."""
    if error is None:
        return Outcome(code, [])
    problems = error.problems if isinstance(error, RecipeError) else []
    problems = problems or [Problem(message_of(error).removeprefix("error: "))]
    return Outcome(code, [_mistake(problem, code) for problem in problems])


def _mistake(problem: Problem, code: int) -> Mistake:
    message, file, help = (redacted(text, random=True) for text in (problem.message, problem.file, problem.help))
    return Mistake(code, message, file, problem.line, problem.column, help)


@contextmanager
def only_a_document(wanted: bool) -> Iterator[TextIO]:
    """Where the document goes: stdout. If wanted, all else that is printed goes to stderr, by other processes, too."""
    if not wanted:
        yield sys.stdout
        return
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with open(stdout, "w", encoding="utf-8", closefd=False) as document, redirect_stdout(sys.stderr):
            yield document
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
