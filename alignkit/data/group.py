"""Groups: a prompt with K responses, the one data object; and their form on the disk, one JSON object a line."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Any, TypedDict, cast

from alignkit.data.files import SkippedRow, bad_rows, file_rows, kind_of, parse, raised
from alignkit.errors import BadRow
from alignkit.io.atomic import whole_file

ROLES = ("system", "user", "assistant")
LEVELS = ("significantly", "better", "slightly", "unsure")
_VERSION = 1  # of a group's JSON
_SHOWN = 60  # characters of a prompt in a message
_NAMED = 3  # rows in a message


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

    @property
    def reward(self) -> float:
        """The un-whitened combination of its scores; only for responses that were scored, as an algorithm's are."""
        reward = self.scores["reward"]
        assert reward is not None
        return reward


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
    return tuple(Pair(i, j) for i, j in ranking_pairs([response.rank for response in group.responses]))


def ranking_pairs(ranks: Sequence[float | None]) -> list[tuple[int, int]]:
    """Pairs (i, j) with i better than j, i.e. of lower rank; 1 is best, ties and what has no rank give no pair."""
    ranked = [(index, rank) for index, rank in enumerate(ranks) if rank is not None]
    return [(i, j) for i, best in ranked for j, rank in ranked if best < rank]


def with_labels(group: Group) -> Group:
    """The group's labelled responses alone; where there is no label, one that wins more pairs than it loses is
    desirable, one that loses more is not.
    """
    lead = [0.0] * len(group.responses)
    for pair in resolved_pairs(group):
        lead[pair.better] += 2 * pair.p - 1
        lead[pair.worse] -= 2 * pair.p - 1
    rated = []
    for response, ahead in zip(group.responses, lead, strict=True):
        if response.label is not None or ahead:
            label = ahead > 0 if response.label is None else response.label
            rated.append(replace(response, label=label, rank=None))
    return replace(group, responses=tuple(rated), pairs=())


def why_not_demonstration(group: Group) -> str:
    """Why a group is no demonstration, and what it is good for; empty where it is one."""
    count = len(group.responses)
    if not group.prompt:
        return "is raw text without a prompt, which is for lm"
    if count == 0:
        return "has no response; prompts alone are for algorithms that sample (ppo, grpo ...)"
    if count > 1:
        return f"has {count} responses, which would all be learned; comparisons are for reward_model or dpo"
    if group.responses[0].label is False:
        return "has a thumbs down and would be learned all the same; leave such rows out, or use kto"
    return ""


def preview(group: Group) -> str:
    """A group as a person knows it, by its first words in quotes: the id is a hash."""
    messages = [message for message in group.prompt if message["role"] == "user"] or list(group.prompt)
    text = messages[0]["content"] if messages else next((response.text for response in group.responses), "")
    words = " ".join(text[: 4 * _SHOWN].split())
    return f"'{words if len(words) <= _SHOWN else words[:_SHOWN] + '...'}'"


def previews(groups: Sequence[Group]) -> str:
    """The first of some groups, as a person knows them, and how many more there are."""
    more = f" and {len(groups) - _NAMED} more" if len(groups) > _NAMED else ""
    return ", ".join(preview(group) for group in groups[:_NAMED]) + more


def group_id(prompt: Sequence[Message], responses: Sequence[Response] = ()) -> str:
    """16 hex digits that depend on the words of the prompt and the responses only."""
    said = [r.text if r.messages is None else turns_of(r.messages) for r in responses]
    return sha256_of([turns_of(prompt), said])[:16]


def prompts_of(groups: Iterable[Group]) -> list[Group]:
    """The prompts alone, each once, in the order in which they first appear; raw text has none."""
    found: dict[str, Group] = {}
    for group in groups:
        if group.prompt:
            found.setdefault(key := group_id(group.prompt), Group(group.prompt, id=key, meta=group.meta))
    return list(found.values())


def turns_of(messages: Sequence[Message]) -> list[list[str]]:
    return [[message["role"], message["content"]] for message in messages]


def sha256_of(value: Any) -> str:
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
    row = parse(line) if isinstance(line, str | bytes) else line
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
        check_indices(pair, len(group.responses))
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
        raise BadRow(f"a {name} is {kind_of(row)}, not an object")
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


def check_indices(pair: Pair, count: int) -> None:
    for index in (pair.better, pair.worse):
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
            raise BadRow(f"a pair names response {index!r}, but there are {count} (counted from 0)")
    if pair.better == pair.worse:
        raise BadRow(f"a pair compares response {pair.better} with itself")


def write_groups(path: Path | str, groups: Iterable[Group]) -> None:
    """Write one line a group; the file appears under its name only when it is whole and on the disk."""
    path = Path(path)
    with whole_file(path) as file:
        _write_lines(file, groups, packed=path.suffix == ".gz")


def _write_lines(file: IO[bytes], groups: Iterable[Group], packed: bool) -> None:
    if not packed:
        file.writelines(group_to_json(group).encode() + b"\n" for group in groups)
        return
    # No name and no time in the header, so that equal groups give equal bytes.
    with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as stream:
        stream.writelines(group_to_json(group).encode() + b"\n" for group in groups)


def read_groups(path: Path | str) -> list[Group]:
    """The groups of a file that `write_groups` wrote; `DataError` naming every line that is not one."""
    groups, bad = [], []
    for number, row in file_rows(Path(path)):
        try:
            groups.append(group_from_json(raised(row)))
        except BadRow as error:
            bad.append(SkippedRow(str(path), number, str(error)))
    if bad:
        raise bad_rows(bad)
    return groups
