"""The errors that users see. Each class has the exit code of the command line."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from alignkit.io.text import redacted

if TYPE_CHECKING:
    from pydantic import ValidationError

# What the system says of a disk, in the words of C, Rust and SQLite.
_DISK = re.compile(
    r"No space left|Disk quota exceeded|File too large|disk is full|disk I/O error|"
    r"Read-only file system|Permission denied|Input/output error|Stale file handle"
)
_COMPILED = ("safetensors", "sqlite3", "torch", "pyarrow")
# Torch's allocators and CUDA's libraries report a failed allocation as a RuntimeError. Who quotes a
# server writes something else first.
_OUT_OF_MEMORY = re.compile(
    r"\w+: (?:\[enforce fail|cuda|hip|mps|xpu|cudnn|cublas|default\w*)\b.*(?:out of memory|can't allocate"
    r"|_status_alloc_failed|error_out_of_memory|errormemoryallocation)",
    re.DOTALL,
)

LONGEST = 2000  # characters of a message that is not alignkit's


class AlignkitError(Exception):
    """Shown to the user as one message, without a traceback.

    Attributes:
        prefix: What comes before it.
    """

    exit_code = 1
    prefix = "error: "


class RunFailed(AlignkitError):
    """A stage failed; the run can be resumed."""

    exit_code = 1


class OtherTokenizer(RunFailed):
    """Token by token, a model was asked about responses that were sampled with another
    tokenizer.
    """


class SameFirstToken(RunFailed):
    """Answers that a model should choose from begin with the same token."""


class RecipeError(AlignkitError):
    """A recipe, an override or the usage is wrong, so nothing was started. Holds every problem.

    Args:
        problems: Each with its place in the recipe.
    """

    exit_code = 2
    prefix = ""  # each problem has it

    def __init__(self, problems: Iterable[Problem]):
        self.problems = list(problems)
        super().__init__("\n\n".join(map(str, self.problems)))


class PluginError(AlignkitError):
    """A plugin is missing, broken or misbehaves; the message names it."""

    exit_code = 3


class DataError(AlignkitError):
    """Some rows cannot be used; the message names file, row and reason.

    Args:
        message: What is wrong, where, and what to do.
        option: The keys of an option that the data do not suit, as in `("by", 0)`; before the first
            stage, the message points at it in the recipe.
    """

    exit_code = 4

    def __init__(self, message: str, *, option: tuple[str | int, ...] | None = None):
        super().__init__(message)
        self.option = option


class OutOfResource(AlignkitError):
    """Memory or disk space ran out."""

    exit_code = 5


class RemoteError(AlignkitError):
    """The server of a judge or a reward is unavailable after all retries, or refuses the key or the
    address.

    The run can be resumed.
    """

    exit_code = 6


class NotReproduced(AlignkitError):
    """A stage that was run again gave other results than it did in its run."""

    exit_code = 7


class Repeated(AlignkitError):
    """Data repeat each other, such as held-out rows in training data."""

    exit_code = 8


class Interrupted(AlignkitError):
    """The user pressed Ctrl-C."""

    exit_code = 130
    prefix = ""


class BadRow(Exception):
    """A format raises this for a row that it cannot use; the reader adds file and row number."""


class LeftOut(BadRow):
    """A row that the recipe does not want. It is counted by its reason, and stops nothing."""


@dataclass(frozen=True)
class Problem:
    """One error in a recipe: what is wrong, where, and what to do.

    line, column: counted from 1; line 0 means that the place is not in a file, but in an override.
    source: the text of the line. help: what to do.
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
        return redacted("\n".join(lines))  # a key may be in the line, or in the override


def refuse(message: str, help: str = "") -> NoReturn:
    """Raise RecipeError for what a user typed. help: what to type instead."""
    raise RecipeError([Problem(message, help=help)])


@contextmanager
def located_at(position: str) -> Iterator[None]:
    """Let an error say where the run was: `in iteration 3 of 10`."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        error.add_note(position)
        raise


def reason_of(error: BaseException) -> str:
    """What went wrong, on one line: for a message that says where."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # an author's own class may fail at it
        text = ""
    if isinstance(error, AlignkitError):
        return text
    return f"{type(error).__name__}: {text[:LONGEST]}".removesuffix(": ")


def as_shown(error: BaseException) -> AlignkitError:
    """The error as people get it: in words, with the exit code of its kind."""
    if isinstance(error, AlignkitError):
        return error
    if isinstance(error, KeyboardInterrupt):
        shown: AlignkitError = Interrupted("interrupted")
    else:
        unexpected = f"unexpected {reason_of(error)} (set ALIGNKIT_DEBUG=1 for the traceback)"
        shown = no_disk(error) or AlignkitError(unexpected)
    for note in getattr(error, "__notes__", ()):
        shown.add_note(note)
    return shown


def message_of(error: BaseException) -> str:
    """An error as a person reads it: what is wrong, and then where the run was."""
    shown = as_shown(error)
    text = str(shown).removeprefix(shown.prefix)  # a place in a recipe has it
    notes = [f"  {note}" for note in getattr(shown, "__notes__", ())]
    return "\n".join([f"{shown.prefix}{text}", *notes])


def path_text(keys: Iterable[str | int]) -> str:
    """A path as people write it: `stages.align.epochs`."""
    return ".".join(map(str, keys))


def faults_of(error: ValidationError) -> list[str]:
    """What pydantic found, by place: `digits: Unexpected keyword argument`."""
    faults = []
    for fault in error.errors(include_url=False):
        faults.append(f"{path_text(fault['loc'])}: {fault['msg']}")
    return faults


def did_you_mean(name: str, known: Collection[str], what: str = "") -> str:
    """`did you mean 'dpo'?`, for the closest of the known names.

    If none is close, all of them after `what` they are, or nothing if that is not given.
    """
    names = {Path(str(one).lower()).stem: one for one in known}
    for close in difflib.get_close_matches(Path(str(name).lower()).stem, names, n=1):
        return f"did you mean '{names[close]}'?"
    return what and f"{what}: {', '.join(known) or 'none'}"


def memory_ran_out(error: BaseException) -> bool:
    """Whether an error of Python or torch means that memory ran out."""
    if isinstance(error, RuntimeError):
        return _OUT_OF_MEMORY.match(reason_of(error).lower()) is not None
    return isinstance(error, MemoryError)


def no_disk(error: BaseException) -> OutOfResource | None:
    """The error to show if this error, or one that led to it, means that the disk is full,
    read-only or gone.
    """
    met: list[BaseException] = []
    before: BaseException | None = error
    while before is not None and before not in met:
        if _is_of_disk(before):
            reason = reason_of(error)
            return OutOfResource(f"the disk is full, or cannot be read or written: {reason}")
        met.append(before)
        before = before.__cause__ or (None if before.__suppress_context__ else before.__context__)
    return None


def _is_of_disk(error: BaseException) -> bool:
    """Whether an error's number, or the words of a compiled library, tell of a disk."""
    reason = reason_of(error)
    if isinstance(error, OSError) and isinstance(error.errno, int):
        reason = os.strerror(error.errno)
    elif not (type(error).__module__.startswith(_COMPILED) or ": [enforce fail" in reason):
        return False
    return _DISK.search(reason) is not None


class Stopped(AlignkitError):
    """The run was asked to stop; the same command resumes it."""

    exit_code = 75


class StageWaits(Stopped):
    """A stage waits for people, who label its items; the same command continues. Other stages run
    meanwhile.

    missing: labels. store: where they go.
    """

    prefix = ""

    def __init__(self, message: str, *, missing: int = 0, store: Path = Path()):
        super().__init__(message)  # the defaults let it be pickled
        self.missing, self.store = missing, store
