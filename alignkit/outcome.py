"""How a command ended, as text or as one JSON document: `alignkit --json COMMAND`, or `alignkit COMMAND --json`."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from alignkit.errors import AlignkitError, Problem, RecipeError, message_of
from alignkit.io.text import redacted


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
    """What a command ended with; all mistakes of a recipe are in `errors`.

    kind: names the shape of `result`; empty if there is none.
    """

    exit_code: int
    errors: list[Mistake]
    kind: str = ""
    result: Any = None

    def as_json(self) -> str:
        return json.dumps(_plain(asdict(self)), indent=1, ensure_ascii=False)


@dataclass(frozen=True)
class Result:
    """What a command returns, for programs and for people.

    kind: the name of its schema in `docs/assets/outcome.schema.json`. facts: plain data and paths; a number that is not
    finite becomes null. show: prints the result. error: how the command then ends.
    """

    kind: str
    facts: Any
    show: Callable[[], object] = lambda: None
    error: AlignkitError | None = None


@dataclass
class Ended:
    """What is known of a command when it has ended."""

    result: Result | None = None
    error: BaseException | None = None

    def outcome(self, code: int) -> Outcome:
        """The outcome of the command, which has this exit code."""
        result = self.result or Result("", None)
        problems = self.error.problems if isinstance(self.error, RecipeError) else []
        if not problems and self.error is not None:
            problems = [Problem(message_of(self.error).removeprefix("error: "))]
        return Outcome(code, [_mistake(problem, code) for problem in problems], result.kind, result.facts)


def _plain(value: Any) -> Any:
    """Plain data as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | int | None):
        return value
    return str(value)


def _mistake(problem: Problem, code: int) -> Mistake:
    message, file, help = (redacted(text) for text in (problem.message, problem.file, problem.help))
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
