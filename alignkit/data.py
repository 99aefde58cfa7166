"""Groups: a prompt with K responses, the one data object; and the readers that turn the world's formats into them.

A file is opened by its suffix (jsonl, json, csv, tsv, txt, each also .gz; parquet and hub data sets through
`datasets`), cut into rows, and every row goes through a format plugin's `read` and then through the checks below.
Every fault is reported as `file:row: reason`. Rows count from 1: the line in jsonl and txt, the element of a json
array, the record of parquet and hub data, and in csv and tsv the row a spreadsheet shows (the header is row 1).

What the checks make of a row (`Format.check`, which a format may override):

| found                                                                | the row is |
|----------------------------------------------------------------------|------------|
| no prompt, or its last turn is blank, where the format needs one     | bad        |
| prompt ends with the assistant's turn                                | bad        |
| a role other than system, user, assistant                            | bad        |
| NUL or half a surrogate pair in a text                               | bad        |
| demonstration: blank response, or none of its turns is learned       | bad        |
| comparison: both responses blank                                     | bad        |
| comparison: one response blank                                       | kept: it is the end of turn alone |
| comparison: responses equal but for white space around them          | bad        |
| ranking: fewer than 2 responses, a rank missing, all ranks tied      | bad        |
| ranking: some ranks tied                                             | kept: ties give no pair |
| rank, label, margin or p of a wrong type; margin < 0 or not a level; p outside 0..1 | bad |
| a pair that names a response that is not there, or itself            | bad        |
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import importlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, TypedDict, cast

from alignkit.errors import BadRow, DataError

if TYPE_CHECKING:
    from alignkit.algorithm import Options
    from alignkit.recipe import DataSource, DataSpec

ROLES = ("system", "user", "assistant")
LEVELS = ("significantly", "better", "slightly", "unsure")
SHOWN = 20  # bad rows listed in an error; the rest are counted
_VERSION = 1  # of a group's JSON


class Message(TypedDict, total=False):
    """One turn. `train` (assistant turns of a demonstration): whether its tokens are learned."""

    role: str
    content: str
    train: bool


@dataclass(frozen=True)
class Response:
    """One answer to a prompt, with what is known about it.

    text: the assistant's words, or `messages` for several turns (demonstrations; `train` flags say which count).
    rank: 1 is best, ties allowed. scores: named reward components. label: thumbs up or down.
    tokens, logprobs: what the sampler wrote (logprobs in nats, by the sampler, for diagnosis only).
    written: one flag a token, true where the policy wrote it (absent: all).
    truncated: the sampler was cut off before an end of turn.
    source: who wrote it.
    """

    text: str = ""
    messages: tuple[Message, ...] | None = None
    rank: float | None = None
    scores: dict[str, float | None] = field(default_factory=dict)
    label: bool | None = None
    tokens: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    written: tuple[bool, ...] | None = None
    truncated: bool = False
    source: str | None = None


@dataclass(frozen=True)
class Pair:
    """Response `better` is preferred to `worse` (indices into the group's responses).

    p: probability that it is really better (soft AI labels). margin: in units of the reward, or a level's name
    (`significantly`, `better`, `slightly`, `unsure`) that a reward model's table turns into a number.
    """

    better: int
    worse: int
    p: float = 1.0
    margin: float | str | None = None


@dataclass(frozen=True)
class Group:
    """A prompt with its responses. `bundle`: groups with one key stay in one micro-batch. `meta`: extra columns."""

    prompt: tuple[Message, ...]
    responses: tuple[Response, ...] = ()
    pairs: tuple[Pair, ...] | None = None
    bundle: str | None = None
    id: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


def resolved_pairs(group: Group) -> tuple[Pair, ...]:
    """The group's pairs; where it has none, those that its ranks imply (a lower rank is better, ties give none)."""
    if group.pairs is not None:
        return group.pairs
    ranked = [(index, r.rank) for index, r in enumerate(group.responses) if r.rank is not None]
    return tuple(Pair(i, j) for i, best in ranked for j, rank in ranked if best < rank)


def group_id(prompt: Sequence[Message], responses: Sequence[Response] = ()) -> str:
    """16 hex digits that depend on the words of the prompt and the responses only."""
    said = [r.text if r.messages is None else _turns(r.messages) for r in responses]
    return _digest([_turns(prompt), said])[:16]


def prompts_of(groups: Iterable[Group]) -> list[Group]:
    """The prompts alone, each once, in the order in which they first appear; raw text has none."""
    found: dict[str, Group] = {}
    for group in groups:
        if group.prompt:
            found.setdefault(key := group_id(group.prompt), Group(group.prompt, id=key, meta=group.meta))
    return list(found.values())


def _turns(messages: Sequence[Message]) -> list[list[str]]:
    return [[message["role"], message["content"]] for message in messages]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


# A group as JSON: keys that hold their default are left out, and numbers that JSON lacks are written as strings.


def group_to_json(group: Group) -> str:
    """The group as one line of standard JSON; `group_from_json` gives an equal group back."""
    row: dict[str, Any] = {"alignkit": _VERSION}
    row |= _changed(group, responses=lambda rs: [_response_to_row(r) for r in rs], pairs=_pairs_to_rows)
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"group {group.id!r}: meta must hold what JSON can: {error}") from error
    try:
        line.encode()
    except UnicodeEncodeError:  # half a surrogate pair has no UTF-8, but JSON can escape it
        line = json.dumps(row, allow_nan=False)
    return line


def group_from_json(line: str | bytes | Mapping[str, Any]) -> Group:
    """The group of a line, or of the object already read from it; `BadRow` when it is not one."""
    row = _parse(line) if isinstance(line, str | bytes) else line
    if not isinstance(row, Mapping) or "alignkit" not in row:
        raise BadRow("not a group written by alignkit (no key 'alignkit')")
    if row["alignkit"] != _VERSION:
        raise BadRow(f"a group of version {row['alignkit']!r}; this alignkit reads version {_VERSION}")
    values = _known(row, Group, "group", extra=("alignkit",))
    try:
        values["prompt"] = tuple(_stored_message(m) for m in values["prompt"])
        values["responses"] = tuple(_response_from_row(r) for r in values.get("responses", ()))
        if values.get("pairs") is not None:
            values["pairs"] = tuple(_pair_from_row(p) for p in values["pairs"])
        group = Group(**values)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise BadRow(f"not a group written by alignkit ({type(error).__name__}: {error})") from error
    for pair in group.pairs or ():
        _check_indices(pair, len(group.responses))
    return group


def _changed(thing: Any, **encode: Callable[[Any], Any]) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults."""
    row = {}
    for spec in fields(thing):
        value = getattr(thing, spec.name)
        default = spec.default_factory() if spec.default_factory is not MISSING else spec.default
        if value != default or type(value) is not type(default):
            row[spec.name] = encode.get(spec.name, _plain)(value)
    return row


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value


def _response_to_row(response: Response) -> dict[str, Any]:
    return _changed(
        response,
        logprobs=lambda values: [_plain(value) for value in values],
        scores=lambda scores: {name: _plain(value) for name, value in scores.items()},
    )


def _pairs_to_rows(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    return [_changed(pair) for pair in pairs]


def _known(row: Any, kind: type, name: str, extra: tuple[str, ...] = ()) -> dict[str, Any]:
    """The row without `extra`; a key that the dataclass does not have is an error, never silently lost."""
    if not isinstance(row, Mapping):
        raise BadRow(f"a {name} is {_kind(row)}, not an object")
    values = {key: value for key, value in row.items() if key not in extra}
    unknown = values.keys() - {spec.name for spec in fields(kind)}
    if unknown:
        raise BadRow(f"a {name} has unknown keys: {', '.join(sorted(unknown))}")
    return values


def _response_from_row(row: Any) -> Response:
    values = _known(row, Response, "response")
    for name in ("tokens", "written"):
        if values.get(name) is not None:
            values[name] = tuple(values[name])
    if values.get("logprobs") is not None:
        values["logprobs"] = tuple(_number(value) for value in values["logprobs"])
    if values.get("messages") is not None:
        values["messages"] = tuple(_stored_message(m) for m in values["messages"])
    if "scores" in values:
        values["scores"] = {name: _number(value) for name, value in values["scores"].items()}
    if "rank" in values:
        values["rank"] = _number(values["rank"])
    return Response(**values)


def _pair_from_row(row: Any) -> Pair:
    values = _known(row, Pair, "pair")
    return Pair(**{name: _number(value) for name, value in values.items()})


def _stored_message(row: Any) -> Message:
    if not isinstance(row["role"], str) or not isinstance(row["content"], str):
        raise TypeError("role and content of a message must be text")
    return cast(Message, dict(row))


def write_groups(path: Path | str, groups: Iterable[Group]) -> None:
    """Writes one line a group; the file appears under its name only when it is whole and on the disk."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            _write_lines(file, groups, packed=path.suffix == ".gz")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _write_lines(file: IO[bytes], groups: Iterable[Group], packed: bool) -> None:
    if not packed:
        file.writelines(group_to_json(group).encode() + b"\n" for group in groups)
        return
    # No name and no time in the header, so that equal groups give equal bytes.
    with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as stream:
        stream.writelines(group_to_json(group).encode() + b"\n" for group in groups)


def _sync_folder(folder: Path) -> None:
    """Makes a rename last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_groups(path: Path | str) -> list[Group]:
    """The groups of a file that `write_groups` wrote; `DataError` naming every line that is not one."""
    groups, bad = [], []
    for number, row in _file_rows(Path(path)):
        try:
            groups.append(group_from_json(_raised(row)))
        except BadRow as error:
            bad.append(SkippedRow(str(path), number, str(error)))
    if bad:
        raise _bad_rows(bad)
    return groups


# Formats


class _NoOptions:
    """`alignkit.Options` as it is, looked up when asked for: its module imports this one."""

    def __get__(self, instance: Format | None, owner: type[Format]) -> type[Options]:
        from alignkit.algorithm import Options

        return Options


class Format:
    """Base class of a data format: says which rows are its own (`matches`) and turns one into a group (`read`).

    summary: one line. wants: the columns it looks for, told to a user whose rows match no format.
    needs_prompt: false where an empty prompt is right (raw text). plain_text: it may be chosen for a .txt file
    without being named.
    """

    if TYPE_CHECKING:
        Options: ClassVar[type[Options]]
    else:
        Options = _NoOptions()  # a format with options has its own subclass of `alignkit.Options` here
    summary: ClassVar[str] = ""
    wants: ClassVar[str] = ""
    needs_prompt: ClassVar[bool] = True
    plain_text: ClassVar[bool] = False

    def __init__(self, options: Any = None):
        self.options: Any = self.Options() if options is None else options

    @classmethod
    def matches(cls, row: Any) -> bool:
        """Whether a row looks like this format's, for a recipe that does not name one. Must not raise."""
        return False

    def read(self, row: Any) -> Group:
        """The group of a row (what JSON can hold, mostly a dict); raises `BadRow(reason)`."""
        raise NotImplementedError

    def check(self, group: Group) -> None:
        """Raises `BadRow` for a group that cannot be used; see the table in the module's docstring."""
        check_group(group, needs_prompt=self.needs_prompt)

    def rows_of_text(self, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
        """Cuts a .txt file, given as numbered lines, into numbered rows. Default: a line is a row, blank ones none."""
        return ((number, line) for number, line in lines if line.strip())

    # What most formats need to take a row apart.

    @staticmethod
    def has(row: Any, *names: str) -> bool:
        """Whether the row is an object with all these columns, none of them null."""
        return isinstance(row, Mapping) and all(row.get(name) is not None for name in names)

    @staticmethod
    def lacks(row: Any, *names: str) -> bool:
        """Whether the row has none of these columns, or only null in them."""
        return isinstance(row, Mapping) and all(row.get(name) is None for name in names)

    @staticmethod
    def text(row: Mapping[str, Any], name: str, default: str | None = None) -> str:
        """A column of text; absent or null: `default`, or a bad row where that is None."""
        value = row.get(name)
        if value is None and default is not None:
            return default
        if value is None:
            raise BadRow(f"column '{name}' is missing" if name not in row else f"column '{name}' is null")
        if not isinstance(value, str):
            raise BadRow(f"column '{name}' must be text, not {_kind(value)}")
        return value

    @staticmethod
    def flag(row: Mapping[str, Any], name: str) -> bool | None:
        """A column of true or false (csv: the words); None where it is absent, null or an empty cell."""
        value = row.get(name)
        value = {"true": True, "false": False, "": None}.get(value.lower(), value) if isinstance(value, str) else value
        if value is not None and not isinstance(value, bool):
            raise BadRow(f"column '{name}' must be true or false, not {value!r}")
        return value

    @staticmethod
    def number(row: Mapping[str, Any], name: str) -> float | None:
        """A column of numbers (csv: their digits); None where it is absent, null or an empty cell."""
        return _to_number(row.get(name), f"column '{name}'")

    @staticmethod
    def margin(row: Mapping[str, Any], name: str = "margin") -> float | str | None:
        """A pair's margin: a number, or the name of a level; None where it is absent."""
        value = row.get(name)
        return value if value in LEVELS else _to_number(value, f"column '{name}'", f", or one of {', '.join(LEVELS)}")

    @staticmethod
    def conversation(value: Any, name: str, user: bool = True) -> tuple[Message, ...]:
        """Turns from a list of messages (OpenAI or ShareGPT), one message, either as JSON text, or plain text.

        Plain text is the turn of the user, or of the assistant where `user` is false.
        """
        if isinstance(value, str):
            value = _messages_in_cell(value)
        if isinstance(value, str):
            return (Message(role="user" if user else "assistant", content=value),)
        turns = [value] if isinstance(value, Mapping) else value
        if not isinstance(turns, list | tuple):
            raise BadRow(f"column '{name}' must be text or a list of messages, not {_kind(value)}")
        return tuple(_message(turn, f"{name}[{index}]") for index, turn in enumerate(turns))

    @staticmethod
    def answer(turns: Sequence[Message], **known: Any) -> Response:
        """A response from the turns after the prompt: one turn becomes its text, several stay messages."""
        if not turns or turns[-1]["role"] != "assistant":
            raise BadRow("the last turn must be the assistant's")
        if turns[0]["role"] != "assistant":
            raise BadRow(f"the first turn after the prompt must be the assistant's, not the {turns[0]['role']}'s")
        if len(turns) == 1 and turns[0].get("train", True):
            return Response(text=turns[0]["content"], **known)
        return Response(messages=tuple(turns), **known)

    @classmethod
    def demonstration(cls, turns: Sequence[Message], **known: Any) -> tuple[tuple[Message, ...], Response]:
        """Splits a conversation before its first assistant turn: what is asked, and what is answered."""
        first = next((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), None)
        if first is None:
            raise BadRow("there is no assistant turn")
        return tuple(turns[:first]), cls.answer(turns[first:], **known)

    @staticmethod
    def rest(row: Mapping[str, Any], *used: str) -> dict[str, Any]:
        """The columns that the format did not use; they become the group's `meta`."""
        return {name: value for name, value in row.items() if name not in used}


_SPEAKERS = {"human": "user", "gpt": "assistant", "prompter": "user"} | {role: role for role in ROLES}


def _message(turn: Any, where: str) -> Message:
    """A message from {role, content} or ShareGPT's {from, value}."""
    if not isinstance(turn, Mapping):
        raise BadRow(f"{where} must be a message, not {_kind(turn)}")
    speaker = turn.get("role", turn.get("from"))
    role = _SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise BadRow(f"{where} has the unknown role {speaker!r}; known are {', '.join(_SPEAKERS)}")
    content = turn.get("content", turn.get("value"))
    if content is None and turn.get("tool_calls"):
        raise BadRow(f"{where} is a tool call; only turns of text can be read")
    message = Message(role=role, content=_content(content, where))
    train = turn.get("train")
    if train is not None and not isinstance(train, bool):
        raise BadRow(f"{where}: train must be true or false, not {train!r}")
    if train is not None:
        message["train"] = train
    return message


def _content(content: Any, where: str) -> str:
    """A message's words: text, or a list of text parts, joined."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise BadRow(f"{where} has no text: its content is {_kind(content)}")
    texts = [_part(part, where) for part in content]
    return "".join(texts)


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") == "text":
        text = part.get("text", part.get("value"))
        if isinstance(text, str):
            return text
    raise BadRow(f"{where} has a part that is not text: {str(part)[:60]}")


def _to_number(value: Any, what: str, also: str = "") -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise BadRow(f"{what} must be a number{also}, not {value!r}") from None
    _check_number(value, what, also)
    return float(value)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the floats
        return False


def _messages_in_cell(text: str) -> Any:
    """The list of messages that a cell of a table holds as JSON; any other text stays what it is."""
    if not text.lstrip().startswith("["):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    are_messages = bool(value) and all(isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in value)
    return value if are_messages else text


_KINDS = {
    type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list",
    dict: "an object",
}  # fmt: skip


def _kind(value: Any) -> str:
    """What JSON calls a value's type."""
    return _KINDS.get(type(value), type(value).__name__)


# Checks


def check_group(group: Group, *, needs_prompt: bool = True) -> None:
    """Raises `BadRow` for a group that cannot be used; see the table in the module's docstring."""
    for message in group.prompt:
        _check_message(message)
    for response in group.responses:
        _check_response(response)
    if needs_prompt and not (group.prompt and group.prompt[-1]["content"].strip()):
        raise BadRow("the last turn of the prompt is empty" if group.prompt else "there is no prompt")
    if group.prompt and group.prompt[-1]["role"] == "assistant":
        raise BadRow("the prompt ends with the assistant's turn")
    if group.pairs is not None:
        _check_pairs(group)
    elif any(response.rank is not None for response in group.responses):
        _check_ranks(group.responses)
    elif any(_blank(response) for response in group.responses):
        raise BadRow("the response is empty")


def _check_message(message: Message) -> None:
    if message.get("role") not in ROLES:
        raise BadRow(f"unknown role {message.get('role')!r}; known are {', '.join(ROLES)}")
    _check_words(message["content"])


def _check_words(text: Any) -> None:
    if not isinstance(text, str):
        raise BadRow(f"a text is {_kind(text)}")
    if "\0" in text:
        raise BadRow("a text has a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRow("a text has half a surrogate pair (not valid Unicode)") from error


def _check_response(response: Response) -> None:
    _check_words(response.text)
    for message in response.messages or ():
        _check_message(message)
    if response.messages is not None and not any(_learned(message) for message in response.messages):
        raise BadRow("no assistant turn is learned: each is empty or has train: false")
    if response.label is not None and not isinstance(response.label, bool):
        raise BadRow(f"label must be true or false, not {response.label!r}")
    if response.rank is not None:
        _check_number(response.rank, "rank")


def _learned(message: Message) -> bool:
    return message["role"] == "assistant" and message.get("train", True) and bool(message["content"].strip())


def _said(response: Response) -> Any:
    """What tells one response from another: its words, without white space around them."""
    return response.text.strip() if response.messages is None else _turns(response.messages)


def _blank(response: Response) -> bool:
    return not _said(response)


def _check_pairs(group: Group) -> None:
    for pair in group.pairs or ():
        _check_pair(pair, group.responses)


def _check_pair(pair: Pair, responses: Sequence[Response]) -> None:
    _check_indices(pair, len(responses))
    better, worse = _said(responses[pair.better]), _said(responses[pair.worse])
    if not better and not worse:
        raise BadRow("both responses are empty")
    if better == worse:
        raise BadRow("the better and the worse response are equal")
    _check_number(pair.p, "p")
    if not 0 <= pair.p <= 1:
        raise BadRow(f"p must be between 0 and 1, not {pair.p!r}")
    if pair.margin is None or pair.margin in LEVELS:
        return
    _check_number(pair.margin, "margin", f", or one of {', '.join(LEVELS)}")
    if isinstance(pair.margin, float | int) and pair.margin < 0:
        raise BadRow(f"margin must not be negative: {pair.margin!r}")


def _check_indices(pair: Pair, count: int) -> None:
    for index in (pair.better, pair.worse):
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
            raise BadRow(f"a pair names response {index!r}, but there are {count} (counted from 0)")
    if pair.better == pair.worse:
        raise BadRow(f"a pair compares response {pair.better} with itself")


def _check_number(value: Any, what: str, also: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
        raise BadRow(f"{what} must be a number{also}, not {value!r}")


def _check_ranks(responses: Sequence[Response]) -> None:
    if len(responses) < 2:
        raise BadRow("a ranking needs at least 2 responses")
    missing = [str(index) for index, response in enumerate(responses) if response.rank is None]
    if missing:
        raise BadRow(f"responses without a rank (counted from 0): {', '.join(missing)}")
    if len({response.rank for response in responses}) == 1:
        raise BadRow("all ranks are tied")
    if all(_blank(response) for response in responses):
        raise BadRow("all responses are empty")


# Loading


@dataclass(frozen=True)
class SkippedRow:
    """A row that could not be used. `row` counts from 1; 0 where the file as a whole is meant."""

    file: str
    row: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.row}: {self.reason}"


@dataclass(frozen=True)
class Loaded:
    """What `load` found. skipped: the bad rows of sources that say `on_bad_row: skip`."""

    groups: list[Group]
    validation: list[Group] = field(default_factory=list)
    skipped: list[SkippedRow] = field(default_factory=list)


def load(
    spec: DataSpec,
    *,
    formats: Mapping[str, type[Format]],
    seed: int,
    stage_data: Callable[[str], Path],
) -> Loaded:
    """Reads all sources of a data entry.

    formats: name -> format, tried on the first row of a source that names none. seed: of the validation split and
    of the mixing. stage_data: the file that a stage left its groups in.

    All bad rows of all sources are in one error. The validation share is cut by a hash of the prompt, so a prompt is
    on one side only, whatever source it is in, and adding rows moves no other row. Where weights differ from 1,
    sources are repeated or thinned out so that they stand in the proportion of their weights and the total is kept.
    """
    parts: list[list[Group]] = []
    skipped: list[SkippedRow] = []
    fatal: list[SkippedRow] = []
    for source in spec.sources:
        groups, bad = _read_source(source, formats, stage_data)
        (skipped if source.on_bad_row == "skip" else fatal).extend(bad)
        if not groups and not fatal:
            raise DataError(_nothing(_name(source), bad))
        parts.append(groups)
    if fatal:
        raise _bad_rows(fatal)
    parts, validation = _split(parts, [source.validation or 0.0 for source in spec.sources], seed)
    weights = [1.0 if source.weight is None else source.weight for source in spec.sources]
    return Loaded(_mix(parts, weights, seed), validation, skipped)


def _bad_rows(bad: Sequence[SkippedRow]) -> DataError:
    rows = "row" if len(bad) == 1 else "rows"
    lines = [f"{len(bad)} {rows} cannot be used:", *(f"  {row}" for row in bad[:SHOWN])]
    if len(bad) > SHOWN:
        lines.append(f"  ... and {len(bad) - SHOWN} more")
    return DataError("\n".join(lines))


def _nothing(name: str, bad: Sequence[SkippedRow]) -> str:
    return f"{name}: no usable row" + (f"; all {len(bad)} were skipped, the first: {bad[0]}" if bad else "")


def _name(source: DataSource) -> str:
    if source.stage:
        return f"stage {source.stage}"
    return str(source.path) if source.path is not None else f"{source.hub}[{source.split or 'train'}]"


def _read_source(
    source: DataSource, formats: Mapping[str, type[Format]], stage_data: Callable[[str], Path]
) -> tuple[list[Group], list[SkippedRow]]:
    """All good groups of a source (at most its limit) and all bad rows up to there."""
    reader = _Reader(source, formats)
    groups: list[Group] = []
    bad: list[SkippedRow] = []
    name = _name(source)
    if source.split and not source.hub:
        raise DataError(f"{name}: 'split' names a part of a hub data set; this one has none (name another file)")
    for number, row in reader.rows(stage_data):
        try:
            groups.append(reader.group(_raised(row)))
        except BadRow as error:
            bad.append(SkippedRow(name, number, str(error)))
        if source.limit is not None and len(groups) >= source.limit:
            break
    return groups, bad


def _raised(row: Any) -> Any:
    """A fault found while a file was cut into rows travels as a value, so that the rows after it are still read."""
    if isinstance(row, BadRow):
        raise row
    return row


class _StoredGroups(Format):
    """What a stage left: written by alignkit, so nothing is required of it beyond its shape."""

    def read(self, row: Any) -> Group:
        return group_from_json(row)

    def check(self, group: Group) -> None:
        pass


class _Reader:
    """Turns a source's rows into groups; chooses the format by the first row that can be parsed."""

    def __init__(self, source: DataSource, formats: Mapping[str, type[Format]]):
        self.source = source
        self.formats = formats
        self.format: Format | None = None
        if source.format is not None:
            self.format = source.format.claim.thing(source.format.options)
        elif source.stage:
            self.format = _StoredGroups()

    def rows(self, stage_data: Callable[[str], Path]) -> Iterator[tuple[int, Any]]:
        """Numbered rows; a `BadRow` stands in the place of one that cannot be parsed."""
        source = self.source
        if source.path is None and not source.stage:
            return _dataset_rows(str(source.hub), split=source.split or "train")
        path = stage_data(source.stage) if source.stage else Path(str(source.path))
        if _suffix(path) == ".txt":
            return self._text_rows(path)
        return _file_rows(path)

    def _text_rows(self, path: Path) -> Iterator[tuple[int, Any]]:
        if self.format is None:
            plain = {name: cls for name, cls in self.formats.items() if cls.plain_text}
            if len(plain) != 1:
                raise DataError(f"{path}: name the format of a plain text file; {_told(plain or self.formats)}")
            self.format = next(iter(plain.values()))()
        lines: list[tuple[int, str]] = []
        for number, line in _text_lines(path):
            if isinstance(line, BadRow):
                yield number, line
            else:
                lines.append((number, line))
        yield from self.format.rows_of_text(lines)

    def group(self, row: Any) -> Group:
        """The checked group of a row, with an id and the source's meta."""
        row = _renamed(row, self.source.columns or {})
        if self.format is None:
            self.format = _detected(row, self.formats, _name(self.source))
        try:
            group = self.format.read(row)
            self.format.check(group)
        except BadRow:
            raise
        except Exception as error:  # a format that did not foresee a row must not hide which row it was
            reason = f"{type(self.format).__name__} failed: {type(error).__name__}: {error}"
            raise BadRow(reason) from error
        meta = {**group.meta, **(self.source.meta or {})}
        return replace(group, id=group.id or group_id(group.prompt, group.responses), meta=meta)


def _renamed(row: Any, columns: Mapping[str, str]) -> Any:
    """The row with its columns under the names that the format expects. columns: expected -> actual."""
    if not columns:
        return row
    if not isinstance(row, Mapping):
        raise BadRow(f"columns cannot be renamed: the row is {_kind(row)}, not an object")
    missing = [actual for actual in columns.values() if actual not in row]
    if missing:
        raise BadRow(f"no column {', '.join(map(repr, missing))}; the row has {', '.join(map(str, row))}")
    kept = {name: value for name, value in row.items() if name not in columns.values()}
    return kept | {expected: row[actual] for expected, actual in columns.items()}


def _detected(row: Any, formats: Mapping[str, type[Format]], name: str) -> Format:
    matching = {known: cls for known, cls in formats.items() if _fits(cls, row)}
    if len(matching) == 1:
        return next(iter(matching.values()))()
    has = f"columns {', '.join(map(str, row))}" if isinstance(row, Mapping) else f"{_kind(row)}"
    if matching:
        raise DataError(f"{name}: several formats fit its first row ({has}), name one:\n{_told(matching)}")
    raise DataError(
        f"{name}: no format fits its first row ({has}). "
        f"Name the format, or rename columns with `columns: {{expected: actual}}`:\n{_told(formats)}"
    )


def _fits(format_class: type[Format], row: Any) -> bool:
    try:
        return format_class.matches(row)
    except Exception:  # a plugin that trips over a foreign row does not want it
        return False


def _told(formats: Mapping[str, type[Format]]) -> str:
    width = max((len(name) for name in formats), default=0)
    return "\n".join(f"  {name:<{width}}  {cls.wants or cls.summary}" for name, cls in sorted(formats.items()))


# Splitting and mixing


def _prompt_key(group: Group) -> str:
    """Equal for equal prompts; raw text has no prompt and is its own."""
    turns = [[role, content.strip()] for role, content in _turns(group.prompt)]
    return _digest(turns or [_said(response) for response in group.responses])


def _place(key: str, seed: int, purpose: str) -> float:
    """A number in [0, 1) that depends on its arguments only."""
    return int(_digest([purpose, seed, key])[:13], 16) / 16**13


def _split(parts: Sequence[list[Group]], shares: Sequence[float], seed: int) -> tuple[list[list[Group]], list[Group]]:
    """Takes the validation groups out of the sources. A prompt that one source holds out is held out of all."""
    if not any(shares):
        return list(parts), []
    keyed = [[(_prompt_key(group), group) for group in groups] for groups in parts]
    held: set[str] = set()
    for groups, share in zip(keyed, shares, strict=True):
        held |= _held_out({key for key, _ in groups}, share, seed)
    training = [[group for key, group in groups if key not in held] for groups in keyed]
    return training, [group for groups in keyed for key, group in groups if key in held]


def _held_out(keys: set[str], share: float, seed: int) -> set[str]:
    """The prompts that go to validation: about a `share` of them, and at least one on each side."""
    if share <= 0 or len(keys) < 2:
        return set()
    order = sorted((_place(key, seed, "validation"), key) for key in keys)
    chosen = [key for place, key in order if place < share]
    return set(chosen[: len(order) - 1] or [order[0][1]])


def _mix(parts: Sequence[Sequence[Group]], weights: Sequence[float], seed: int) -> list[Group]:
    """The sources one after the other, in the proportion of their weights where these differ from 1."""
    if all(weight == 1.0 for weight in weights):
        return [group for groups in parts for group in groups]
    total, whole = sum(map(len, parts)), sum(weights)
    mixed: list[Group] = []
    for number, (groups, weight) in enumerate(zip(parts, weights, strict=True)):
        count = round(total * weight / whole) if whole > 0 else 0
        mixed += _resized(groups, count, seed, f"mix {number}")
    return mixed


def _resized(groups: Sequence[Group], count: int, seed: int, purpose: str) -> list[Group]:
    """`count` groups: all of them as often as that takes whole, then a stable choice of them, in their order."""
    if not groups:
        return []
    times, more = divmod(count, len(groups))
    order = sorted(range(len(groups)), key=lambda i: _place(f"{i} {groups[i].id}", seed, purpose))
    return [*groups] * times + [groups[i] for i in sorted(order[:more])]


# Files


def _suffix(path: Path) -> str:
    """The kind of a file: its last suffix, or the one before `.gz`."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def _file_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Numbered rows of a file; a `BadRow` stands in the place of one that cannot be parsed."""
    suffix = _suffix(path)
    if suffix in (".jsonl", ".ndjson"):
        return _jsonl_rows(path)
    if suffix == ".json":
        return _json_rows(path)
    if suffix in (".csv", ".tsv"):
        return _table_rows(path, "," if suffix == ".csv" else "\t")
    if suffix == ".parquet":
        return _dataset_rows("parquet", data_files=str(path), split="train")
    raise DataError(f"{path}: cannot read this kind of file; known are jsonl, json, csv, tsv, txt (also .gz), parquet")


def _byte_lines(path: Path) -> Iterator[tuple[int, bytes | BadRow]]:
    """Numbered lines as they are on the disk, without a byte order mark; damage in a gzip file is the last line."""
    number = 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise DataError(f"{path}: the file is UTF-16; save it as UTF-8")
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield number + 1, BadRow(f"the gzip file is damaged or cut off: {error}")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _text_lines(path: Path) -> Iterator[tuple[int, str | BadRow]]:
    """Numbered lines as text, without their ends (LF or CRLF)."""
    for number, line in _byte_lines(path):
        yield number, line if isinstance(line, BadRow) else _decoded(line)


def _decoded(line: bytes) -> str | BadRow:
    try:
        return line.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        return BadRow(f"not valid UTF-8 at byte {error.start + 1} of the line")


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in _byte_lines(path):
        if isinstance(line, BadRow):
            yield number, line
        elif line.strip():
            yield number, _attempt(line)


def _attempt(line: bytes) -> Any:
    """The value of a line, or the `BadRow` that says why it has none."""
    try:
        return _parse(line)
    except BadRow as error:
        whole = line.endswith(b"\n")
        return error if whole else BadRow(f"{error}; the line has no end: the file may have been cut off")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _float(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f"{digits[:20]} is too large a number")
    return value


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_float)


def _parse(line: str | bytes) -> Any:
    """The value of a line of JSON; raises `BadRow`."""
    text = line if isinstance(line, str) else _raised(_decoded(line))
    if "\0" in text:
        raise BadRow("has a NUL byte")
    try:
        return _DECODER.decode(text.strip())
    except json.JSONDecodeError as error:
        line_number = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise BadRow(f"not valid JSON: {error.msg} at {line_number}column {error.colno}") from error
    except ValueError as error:
        raise BadRow(f"not valid JSON: {error}") from error
    except RecursionError as error:
        raise BadRow("nested too deeply") from error


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Rows of a JSON file: the elements of an array, or one object.

    An object whose only key holds a list of texts is that list. A fault ends the file, but the rows before it count.
    """
    lines = [line for _, line in _text_lines(path)]
    bad = next(((number, line) for number, line in enumerate(lines, 1) if isinstance(line, BadRow)), None)
    if bad:
        raise DataError(f"{path}:{bad[0]}: {bad[1]}")
    text = "\n".join(map(str, lines)).strip()
    if text.startswith("["):
        yield from enumerate(_elements(text), 1)
    elif text:
        yield from enumerate(_listed(_attempt(text.encode() + b"\n")), 1)


def _listed(value: Any) -> list[Any]:
    inner = next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else None
    return inner if isinstance(inner, list) and all(isinstance(item, str) for item in inner) else [value]


def _elements(text: str) -> Iterator[Any]:
    """Elements of a JSON array one by one, so that a fault costs only what comes after it."""
    position = _after_space(text, 1)
    if text[position : position + 1] == "]":
        return
    while True:
        try:
            value, position = _DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            yield BadRow(f"not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}")
            return
        except ValueError as error:
            yield BadRow(f"not valid JSON: {error}")
            return
        except RecursionError:
            yield BadRow("nested too deeply")
            return
        yield value
        position = _after_space(text, position)
        separator = text[position : position + 1]
        position = _after_space(text, position + 1)
        if separator != ",":
            break
    if separator != "]" or position < len(text):
        yield BadRow("the array is cut off or followed by something else")


def _after_space(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\n", "\r", "\t"):
        position += 1
    return position


def _table_rows(path: Path, delimiter: str) -> Iterator[tuple[int, Any]]:
    """Rows of a csv or tsv file as objects; the header is row 1, and quoted cells may hold line ends."""
    csv.field_size_limit(2**31 - 1)  # the default refuses texts of more than 128 KiB
    damage: list[BadRow] = []
    records = csv.reader(_table_lines(path, damage), delimiter=delimiter, strict=True)
    header: list[str] = []
    number = 0
    while True:
        number += 1
        try:
            cells = next(records)
        except StopIteration:
            break
        except csv.Error as error:
            yield number, BadRow(f"not a valid row of a table: {error}")
            continue
        if not header:
            header = _header(path, cells)
        elif any(cells):  # spreadsheets leave empty rows behind
            yield number, _record(header, cells)
    yield from ((number, fault) for fault in damage)


def _table_lines(path: Path, damage: list[BadRow]) -> Iterator[str]:
    """Lines with their ends; bytes that are not UTF-8 become surrogates, which `_record` finds again."""
    for _, line in _byte_lines(path):
        if isinstance(line, BadRow):
            damage.append(line)
        else:
            yield line.decode(errors="surrogateescape")


def _header(path: Path, cells: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if not any(names) or len(set(names)) < len(names):
        raise DataError(f"{path}:1: the header must name each column once: {', '.join(cells)}")
    return names


def _record(header: Sequence[str], cells: Sequence[str]) -> dict[str, str] | BadRow:
    if len(cells) != len(header):
        return BadRow(f"has {len(cells)} cells, but the header has {len(header)}")
    if any("\udc80" <= character <= "\udcff" for cell in cells for character in cell):
        return BadRow("not valid UTF-8")
    return dict(zip(header, cells, strict=True))


def _dataset_rows(name: str, **where: Any) -> Iterator[tuple[int, Any]]:
    """Rows of a parquet file or hub data set; `datasets` keeps them mapped from the disk."""
    datasets = importlib.import_module("datasets")  # seconds to import, so only when it is needed
    try:
        rows = datasets.load_dataset(name, **where)
    except Exception as error:  # whatever the network, the hub or Arrow raise
        place = where.get("data_files", name)
        raise DataError(f"{place}: cannot be loaded through `datasets`: {type(error).__name__}: {error}") from error
    for number, row in enumerate(rows, 1):
        yield number, _without_nan(row)


def _without_nan(value: Any) -> Any:
    """Tables mark missing numbers by NaN, JSON by null."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
