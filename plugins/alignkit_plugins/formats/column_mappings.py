"""What the columns of rows that no format recognizes may mean, as lines of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from alignkit import Format
from alignkit.contract.formats import (
    FOREIGN,
    Formats,
    checked_groups,
    matches,
    with_renamed_columns,
)

# What columns with a question and with its answer are called, besides `prompt` and `completion`.
QUESTIONS = {"question", "query", "problem", "input", "instruction", "goal", "user"}
ANSWERS = {"answer", "response", "output", "solution", "target", "reply", "assistant"}
# The same for columns with a better and with a worse answer, besides `chosen` and `rejected`.
BETTER = {"better", "good", "preferred", "chosen_response", "chosen_messages"}
WORSE = {"worse", "bad", "rejected", "rejected_response", "rejected_messages"}


@dataclass(frozen=True)
class ColumnMapping:
    """How a recipe may say what a source's columns mean. columns: expected -> actual."""

    format: str
    columns: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.columns:
            return f"data: {{{self.format}: FILE}}"
        names = ", ".join(f"{expected}: {actual}" for expected, actual in self.columns.items())
        return f"data: {{path: FILE, columns: {{{names}}}}}  # {self.format}"


def mappings_of(row: Any, formats: Formats) -> list[ColumnMapping]:
    """The ways to read a row that no format recognizes: by a format's name, or with renamed
    columns.
    """
    if not isinstance(row, Mapping):
        return []
    mappings = {name: ColumnMapping(name) for name, cls in formats.items() if _reads(cls, row)}
    for columns in _renamings(row):
        renamed = with_renamed_columns(row, columns)
        fitting = [
            n for n, cls in formats.items() if matches(cls, renamed) and _reads(cls, renamed)
        ]
        if len(fitting) == 1:
            mappings.setdefault(fitting[0], ColumnMapping(fitting[0], columns))
    return [*mappings.values()]


def _renamings(row: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """What the columns may mean (expected -> actual), by their usual names."""

    def called(usual: set[str]) -> list[str]:
        return [name for name in row if str(name).lower() in usual]

    questions, better, worse = called(QUESTIONS), called(BETTER), called(WORSE)
    prompt = {}
    if "prompt" not in row:
        if len(questions) != 1:
            return
        prompt = {"prompt": questions[0]}
    if len(better) == len(worse) == 1:
        yield {**prompt, "chosen": better[0], "rejected": worse[0]}
    # A solution may stand next to an answer.
    answers = sorted(called(ANSWERS), key=lambda name: str(name).lower() == "answer")
    for expected in ("completion", "answer"):
        for name in answers:
            if name != expected:
                yield {**prompt, expected: name}
    foreign = {f"other_{name}": name for name in row if name in FOREIGN}
    if prompt or foreign:
        yield prompt | foreign


def _reads(format_class: type[Format], row: Any) -> bool:
    """Whether a format that does not recognize a row can read it if a recipe names it."""
    try:
        return bool(checked_groups(format_class(), row))
    except Exception:  # whatever a format raises on a foreign row, it does not read it
        return False


def advice(row: Any, formats: Formats) -> str:
    """What a user may do about such a row."""
    if mappings := mappings_of(row, formats):
        return "\n  ".join(["Say what its columns mean, as in:", *map(str, mappings)])
    return (
        "Rename columns with `columns: {expected: actual}`, for two answers and labels `columns: "
        "{prompt: P, A: ONE, B: OTHER, label: WHICH}`, say what they mean with a `template`, or "
        f"name the format (`alignkit plugins FORMAT` describes it): {', '.join(formats)}"
    )
