"""The rules by which rows are left out or changed, one option each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import alignkit
from alignkit import DataError, DataRef, Field, Group
from alignkit.data.group import Response, group_id
from alignkit.errors import check_extra
from alignkit.report import Table
from alignkit_plugins.formats.languages import check_languages, identifier
from alignkit_plugins.formats.shown import shortened
from alignkit_plugins.formats.spoken import all_turns
from alignkit_plugins.people.sharing import redact

# What models say of themselves, and what reviewers of data remove first (Vicuna's, ShareGPT's and
# OpenOrca's filters).
STOCK = re.compile(
    r"\b(?:as|i am|i['’]m|i am just|i['’]m just) an? (?:\w+ )?(?:ai|(?:large )?language model)\b"
    r"|\bai language model\b|\b(?:developed|trained|created|made) by (?:openai|anthropic|google|meta)\b"
    r"|\bmy (?:knowledge|training)(?: data)? (?:cutoff|cut-off)\b|\bas of my last (?:knowledge |training )?update\b"
    r"|\bi (?:do not|don['’]t) have (?:personal (?:opinions|beliefs|experiences|feelings)|feelings or emotions)\b",
    re.IGNORECASE,
)
_FENCE = re.compile(r" {0,3}(?:(`{3,})(?!.*`)|(~{3,}))(.*)")  # ```code``` on one line opens nothing
_TABLE = re.compile(r" {0,3}\|?(?:\s*:?-+:?\s*\|)+(?:\s*:?-+:?\s*)?\s*")
_CELLS = re.compile(r"(?<!\\)\|")
SPOKEN = (
    "content",
    "value",
    "text",
    "prompt",
    "completion",
    "response",
    "responses",
    "chosen",
    "rejected",
    "output",
)
# What held-out data may share
ACROSS: tuple[Literal["prompt", "response"], ...] = ("prompt", "response")
LETTERS = 20  # of a text whose language is decided; shorter ones are anything


class Fault(NamedTuple):
    """Why a row is left out: the option that says so, and what it saw."""

    rule: str
    reason: str


class Rules(alignkit.Options):
    """Which rows are left out. Each rule looks at what the assistant says, unless it says
    otherwise.

    Without an option: answers such as `As an AI language model`, and rows that say the same as an
    earlier one, but for case and white space.
    """

    near: float = Field(
        0.8,
        ge=0,
        le=1,
        description=(
            "drop rows at least this similar to an earlier one, with the same numbers; 0: none"
        ),
    )
    languages: list[str] = Field(
        [],
        description=(
            "drop answers in other languages than these (ISO 639-1), such as [en]; [] allows all"
        ),
    )
    markdown: bool = Field(
        True,
        description="drop answers with broken Markdown: an open block of code, or an uneven table",
    )
    personal: bool = Field(
        True,
        description=(
            "replace e-mail addresses, telephone numbers and keys in all texts by [e-mail], "
            "[phone], ***"
        ),
    )
    against: DataRef = Field(
        None,
        description="held-out data; drop rows with its prompts or responses, or nearly equal ones",
    )

    def check(self, user: str) -> None:
        """Raise RunFailed for a package that is missing, or a language that nobody can tell."""
        check_extra(user, "data", "rensa")
        if self.languages:
            check_extra(user, "data", "py3langid")
            check_languages(user, self.languages)

    def fault(self, groups: Sequence[Group]) -> Fault | None:
        """The first thing that is wrong with a row by itself."""
        answers = (all_turns(response) for group in groups for response in group.responses)
        return next((fault for answer in answers for fault in self._wrong(answer)), None)

    def _wrong(self, answer: str) -> Iterator[Fault]:
        if match := STOCK.search(answer):
            yield Fault("stock_phrases", f"says '{shortened(match[0])}'")
        if self.languages and (code := language_of(answer)) and code not in self.languages:
            yield Fault("languages", f"is in {code}")
        if self.markdown and (reason := next(broken_markdown(answer), "")):
            yield Fault("markdown", reason)

    def faults(
        self,
        rows: Sequence[Sequence[Group]],
        names: Sequence[Any],
        held_out: Sequence[Sequence[Group]] = (),
    ) -> dict[int, Fault]:
        """Why rows are left out, by their places.

        rows: the groups of each row; of one without groups nothing is said. names: of the rows, for
        the reasons. held_out: the rows of `against`.
        """
        found: dict[int, Fault] = {}
        for at, groups in enumerate(rows):
            if fault := self.fault(groups):
                found[at] = fault
        from alignkit_plugins.data import near  # imports numpy

        left = [(at, groups) for at, groups in enumerate(rows) if groups and at not in found]
        if self.personal:  # redaction makes rows equal
            left = [(at, [redacted_group(group) for group in groups]) for at, groups in left]
        for kind in ACROSS if held_out else ():
            units, theirs = near.Units.of(left, kind), near.Units.of(enumerate(held_out), kind)
            units = units.rare(near.COMMON) if kind == "response" else units
            for match in near.shared(units, theirs, self.near):
                found[int(units.rows[match.unit])] = Fault("against", f"has a held-out {kind}")
        units = near.Units.of([(at, groups) for at, groups in left if at not in found], "row")
        for match in near.repeated(units, self.near):
            other = names[int(units.rows[match.other])]
            fault = Fault("near", f"is {match.similarity:.2f} similar to {other}")
            if match.similarity == 1.0:
                fault = Fault("duplicates", f"says the same as {other}")
            found[int(units.rows[match.unit])] = fault
        return found


def redacted(value: Any, name: str = "") -> Any:
    """Plain data whose texts are without personal details. name: of the column that has them."""
    if isinstance(value, str):
        # A word by itself may be a row's id, unless it is what somebody says.
        return value if value.isalnum() and name not in SPOKEN else redact(value)
    if isinstance(value, Mapping):
        return {key: redacted(inner, key) for key, inner in value.items()}
    return [redacted(inner, name) for inner in value] if isinstance(value, list | tuple) else value


def redacted_group(group: Group) -> Group:
    """A group without personal details. A response that changes loses the tokens that it was
    sampled as.
    """
    clean = replace(
        group,
        prompt=tuple(redacted(group.prompt)),
        responses=tuple(map(_redacted_response, group.responses)),
        meta=redacted(group.meta),
    )
    return (
        clean
        if clean == group
        else replace(clean, id=group_id(clean.prompt, clean.responses, clean.tools))
    )


def _redacted_response(response: Response) -> Response:
    turns = None if response.messages is None else tuple(redacted(response.messages))
    clean = replace(response, text=redact(response.text), messages=turns)
    if clean == response:
        return response
    return replace(clean, tokens=None, logprobs=None, written=None, tokenizer=None)


def removed_counts(faults: Mapping[int, Fault], rows: int, name: str) -> dict[str, int]:
    """How many rows each rule leaves out. rows: of how many; DataError if that leaves none. name:
    for the error.
    """
    counts = dict(Counter(fault.rule for fault in faults.values()).most_common())
    if len(faults) == rows:
        raise DataError(
            f"{name}: no row is left: "
            f"{', '.join(f'{rule} {count:,}' for rule, count in counts.items())}"
        )
    return counts


def table(
    title: str, removed: Mapping[str, int], kept: int, redacted: int, note: str = ""
) -> Table:
    """What became of the rows. redacted: of those that are kept."""
    numbers = {f"left out: {rule}": count for rule, count in removed.items()}
    numbers |= {"kept": kept, "of these redacted": redacted}
    return Table(
        title,
        ["rows", "number"],
        [[name, f"{count:,}"] for name, count in numbers.items()],
        note=note,
    )


def broken_markdown(text: str) -> Iterator[str]:
    """What is wrong with a Markdown text: a block of code that does not end, a table whose rows
    differ in cells.
    """
    fence, columns = "", 0
    lines = text.split("\n")
    for number, line in enumerate(lines):
        mark = _FENCE.fullmatch(line.rstrip("\r"))
        if mark and not fence:
            fence = mark[1] or mark[2]
        elif mark and (mark[1] or mark[2]).startswith(fence) and not mark[3].strip():
            fence = ""
        elif not fence and columns and "|" in line and _width(line) != columns:
            yield f"has a table with {columns} columns, and a row with {_width(line)}"
        is_rule = (
            not fence
            and "|" in line
            and _TABLE.fullmatch(line.rstrip("\r"))
            and number
            and "|" in lines[number - 1]
        )
        columns = _width(line) if is_rule else columns if "|" in line and not fence else 0
    if fence:
        yield "has a block of code that does not end"


def _width(line: str) -> int:
    # A cell may be empty
    return len(_CELLS.findall(line.strip().removeprefix("|").removesuffix("|"))) + 1


# Languages


def language_of(text: str) -> str:
    """The code of a text's language (ISO 639-1), by py3langid; empty if it has too few letters to
    tell.
    """
    text = text[:500]  # more take longer, and hardly ever change the answer
    return str(identifier().classify(text)[0]) if sum(map(str.isalpha, text)) >= LETTERS else ""
