"""What the columns of rows that no format recognizes may mean, as lines of a recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from shlex import quote
from typing import Any

from alignkit import Format
from alignkit.contract.formats import (
    FOREIGN,
    Formats,
    checked_groups,
    matches,
    with_renamed_columns,
)
from alignkit_plugins.formats.columns import NUMBER, is_empty, side_of
from alignkit_plugins.formats.turns import SPEAKERS, first_of

# What columns with a question and with its answer are called, besides `prompt` and `completion`.
QUESTIONS = {"question", "query", "problem", "input", "instruction", "goal", "user"}
ANSWERS = {"answer", "response", "output", "solution", "target", "reply", "assistant"}
# The same for columns with a better and with a worse answer, besides `chosen` and `rejected`.
BETTER = {"better", "good", "preferred", "chosen_response", "chosen_messages"}
WORSE = {"worse", "bad", "rejected", "rejected_response", "rejected_messages"}
# Keys of a turn that say who speaks, and what; and speakers, besides those of `turns`.
WHO = ("role", "from", "speaker", "author", "sender", "participant", "by", "name")
SAYS = ("content", "value", "text", "utterance", "message", "body")
ROLE_OF = SPEAKERS | dict.fromkeys(("customer", "client", "caller", "patient", "student"), "user")
ROLE_OF |= dict.fromkeys(
    ("agent", "ai", "bot", "chatbot", "support", "representative"), "assistant"
)
DEMONSTRATION = ("prompt", "completion")
TWO_ANSWERS = ("prompt", "A", "B", "label")  # As --columns names them
SHORT = 20  # characters, of which the cells of a column of labels have fewer


@dataclass(frozen=True)
class ColumnMapping:
    """How a recipe may say what a source's columns mean.

    columns: expected -> actual. messages: what a template's are; empty: no template.
    """

    format: str
    columns: Mapping[str, str] = field(default_factory=dict)
    messages: str = ""

    def __str__(self) -> str:
        if self.messages:
            return f"data: {{template: {{path: FILE, messages: '{self.messages}'}}}}"
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
    for text, is_sure in _conversations(row):
        if is_sure and "messages" not in mappings:
            mappings["template"] = ColumnMapping("template", messages=text)
    return [*mappings.values()]


def _renamings(row: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """What the columns may mean (expected -> actual), by their usual names."""

    def called(usual: set[str]) -> list[str]:
        return [name for name in row if str(name).lower() in usual]

    for name, value in row.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            yield {"messages": name}
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


def _conversations(row: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """What reads each column with turns that have other keys or speakers, or none; and whether it is
    clear who is who.
    """
    for name, turns in row.items():
        if not isinstance(turns, list) or len(turns) < 2 or not str(name).isidentifier():
            continue
        if all(isinstance(turn, str) for turn in turns):
            yield f"{{{{ {name}[::2] | dialogue({name}[1::2]) }}}}", False
        if not all(isinstance(turn, Mapping) for turn in turns):
            continue
        who, says = first_of(turns[0], WHO), first_of(turns[0], SAYS)
        speakers = dict.fromkeys(str(turn.get(who)) for turn in turns)
        if not who or not says:
            continue
        roles = [ROLE_OF.get(speaker.strip().lower(), "") for speaker in speakers]
        is_sure = roles.count("") < 2
        for at, other in ((0, "user"), (1, "assistant")):  # the user mostly begins
            if len(roles) == 2 and not roles[at]:
                roles[at] = "user" if roles[1 - at] == "assistant" else other
        named = dict[str, list[str]]()
        for speaker, role in zip(speakers, roles, strict=True):
            if speaker.lower() not in SPEAKERS:
                named.setdefault(role, []).append(speaker)
        if "" not in named and {"user", "assistant"} <= {*roles}:
            words = [f"{role}={json.dumps(ones)}" for role, ones in named.items()]
            keys = ", ".join([json.dumps(who), json.dumps(says), *words])
            yield f"{{{{ {name} | turns({keys}) }}}}", is_sure


def columns_help(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """The columns that may be meant, as `--columns` of `init` and `label` says it."""
    words = list[str]()
    for name, column in _likely(names, rows):
        words.append(f'{name}="{column}"' if "," in column else f"{name}={column}")
    return f"--columns {quote(','.join(words))}"


def _entry(names: Sequence[str], row: Mapping[str, Any]) -> str:
    """The same as a data entry, which recipes and all commands read."""
    words = list[str]()
    for name, column in _likely(names, [row]):
        words.append(f"{name}: {json.dumps(column, ensure_ascii=False)}")
    return f"`{{path: FILE, columns: {{{', '.join(words)}}}}}`"


def _likely(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The columns of the longest texts by these names, and as labels those with a few short cells."""
    cells = dict[str, list[str]]()
    for row in rows:
        for name, cell in row.items():
            cells.setdefault(name, []).extend([str(cell).strip()] * (not is_empty(cell)))
    texts, labels = [name for name in names if name != "label"], list[str]()
    if "label" in names and len(cells) > len(texts):
        labels = _labels(cells)[: len(cells) - len(texts)]
    sizes = {name: sum(map(len, cells[name])) for name in cells if name not in labels}
    longest = sorted(sizes, key=lambda name: -sizes[name])
    columns = sorted(longest[: len(texts)], key=[*cells].index)
    pairs = [*zip_longest(texts, columns, fillvalue="COLUMN")]
    if "label" in names:
        others = longest[len(texts) : len(names)] or ["COLUMN"]
        pairs += [("label", column) for column in labels or others]
    return pairs


def _labels(cells: Mapping[str, Sequence[str]]) -> list[str]:
    """The column that looks most like one of labels, and those that share a cell with it."""
    unlike = dict[str, tuple[bool, float]]()
    for name, texts in cells.items():
        different = {text.lower() for text in texts}
        numbers = len(different) == len(texts) and all(map(NUMBER.fullmatch, texts))
        if texts and not numbers and sum(map(len, texts)) < SHORT * len(texts):
            known = sum(side_of(text, "AB") is not None for text in texts)
            unlike[name] = not known, (len(different) - known) / len(texts)
    filled = max(map(len, cells.values()), default=0)  # a column of remarks is mostly empty
    full = [name for name in unlike if 2 * len(cells[name]) >= filled]
    best = min(full, key=unlike.__getitem__, default="")
    if not best or unlike[best][1] == 1:  # all cells differ
        return []
    shared = {text.lower() for text in cells[best]}
    return [
        name
        for name in unlike
        if unlike[name][1] < 1 and not shared.isdisjoint(text.lower() for text in cells[name])
    ]


def columns_advice(row: Mapping[str, Any], formats: Formats, words: Sequence[str]) -> str:
    """How to say what the columns of a row mean, and which formats are nearest.

    words: what may be written.
    """
    have, shares = {str(column).lower() for column in row}, dict[str, float]()
    for name, cls in formats.items():
        wanted = {*json.loads(cls.example or "{}")}
        shares[name] = len(have & wanted) / len(have | wanted)
    nearest = sorted(
        (name for name in shares if shares[name] > 0.5), key=lambda name: -shares[name]
    )
    near = [f"{name} wants {formats[name].wants}" for name in nearest[:3]]
    turns = [str(ColumnMapping("template", messages=text)) for text, _ in _conversations(row)]
    lines = [
        f"if this is who says what, write `{turns[0]}`"
        if turns
        else f"say which columns are meant, as in {' or '.join(words)}; or write any columns in a "
        "`template`",
        *near,
        f"`alignkit plugins format` lists all {len(formats)} formats",
    ]
    return "\n  ".join(lines)


def advice(row: Any, formats: Formats) -> str:
    """What a user may do about such a row."""
    if mappings := mappings_of(row, formats):
        return "\n  ".join(["say what its columns mean, as in", *map(str, mappings)])
    if not isinstance(row, Mapping):
        return f"`alignkit plugins format` lists all {len(formats)} formats"
    words = [_entry(DEMONSTRATION, row)]
    if len(row) >= len(TWO_ANSWERS):
        words.append(_entry(TWO_ANSWERS, row))
    return columns_advice(row, formats, words)
