"""Groups: a prompt with K responses, the only data object, and how they are stored: one JSON object
per line.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar, Required

from pydantic import ConfigDict, PlainSerializer, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from alignkit.data.files import SkippedRow, bad_rows_error, jsonl_rows, parse, raise_if_bad
from alignkit.errors import BadRow, faults_of
from alignkit.io.atomic import whole_file
from alignkit.io.text import listed

ROLES = ("system", "user", "assistant", "tool")
LARGEST = 1e15  # the largest score or weight: sums and variances of larger ones may overflow
LEVELS = ("significantly", "better", "slightly", "unsure")
_VERSION = 1  # the version of a group's JSON
_PREVIEW_LENGTH = 60  # characters of a prompt in a message
_STORED = ConfigDict(extra="forbid")  # a key that is not known is a fault of the file


def _stored_number(value: float) -> float | str:
    """A number in JSON, which has no nan, inf and -inf: they are text."""
    return value if math.isfinite(value) else str(value)


_Number = Annotated[float, PlainSerializer(_stored_number)]


class Message(TypedDict, total=False):
    """One turn of a conversation: a dict, so `message["content"]` is its text. Only `role` and
    `content` are required.

    Attributes:
        role: One of ROLES.
        content: Empty for a turn that only calls tools.
        train: Whether the tokens of an assistant turn in a demonstration are learned, or how much
            they count in the loss; the default is true.
        reasoning_content: An assistant's thoughts, without tags.
        tool_calls: An assistant's calls, each {"type": "function", "function": {"name",
            "arguments"}}, optionally "id".
        name: The function that a tool turn is the result of. A user may have a name, too.
        tool_call_id: The call that a tool turn answers.
        call_errors: What is wrong with calls in a sampled turn that could not be read.
    """

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    role: Required[str]
    content: Required[str]
    train: bool | float
    reasoning_content: str
    tool_calls: list[dict[str, Any]]
    name: str
    tool_call_id: str
    call_errors: list[str]


def user_turn(text: str) -> Message:
    """What the user says."""
    return Message(role="user", content=text)


def assistant_turn(text: str) -> Message:
    """What the assistant says."""
    return Message(role="assistant", content=text)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a group was read. file: path or name of its source. row: counts from 1.

    skip: its source leaves out bad rows (`on_bad_row: skip`). source: its source's place in the
    data entry, from 0. group: the column by which its source holds rows together. asks: what the
    row asks, if its prompt has words of a template, too.
    """

    file: str
    row: int
    skip: bool = False
    source: int = 0
    group: str | None = None
    asks: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.row}"


@dataclass(frozen=True)
class Response:
    """One response to a prompt, with its ratings and, if it was sampled, its tokens.

    Attributes:
        text: The assistant's text, or a sample's last turn.
        messages: The turns, if there are several.
        rank: Its place among the group's ranked responses; 1 is best, and equal ranks are a tie.
        scores: Reward components by name, and `reward`, their combination; None where scoring
            failed.
        label: True for good, false for bad.
        tokens: The sampled token ids, with the end of turn; None for a text from a file.
        logprobs: The engine's, in nats, 0 for tokens of others.
        action_mask: For each token, whether the policy wrote it; None means all.
        truncated: Sampling stopped before an end of turn.
        source: The author, such as a model.
        tokenizer: Digest of that of the tokens; others read the text.
        async_level: Updates of the policy since the weights that wrote it, when it was learned from
            (`rollout.async_level`).
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STORED

    text: str = ""
    messages: tuple[Message, ...] | None = None
    rank: float | None = None
    scores: dict[str, _Number | None] = field(default_factory=dict)
    label: bool | None = None
    tokens: tuple[int, ...] | None = None
    logprobs: tuple[_Number, ...] | None = None
    action_mask: tuple[bool, ...] | None = None
    truncated: bool = False
    source: str | None = None
    tokenizer: str | None = None
    async_level: int | None = None

    @property
    def reward(self) -> float:
        """The combined reward, less the penalty for a missing end. Raises `ValueError` if the response has not been
        scored.
        """
        reward = self.scores.get("reward")
        if reward is None:
            raise ValueError(
                "this response has no reward; only an algorithm's samples have one, after scoring"
            )
        return reward


@dataclass(frozen=True)
class Pair:
    """A preference between two responses of a group.

    Attributes:
        better: Index of the better one in the group's responses.
        worse: Index of the other one.
        p: The probability that `better` really is the better one, as an AI judge estimates it.
        margin: In units of the reward, or one of LEVELS, which a reward model maps to a number.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STORED

    better: int
    worse: int
    p: float = 1.0
    margin: float | str | None = None


@dataclass(frozen=True)
class Group:
    """A prompt with its responses and their comparisons.

    Attributes:
        prompt: The conversation up to the responses; empty for raw text.
        responses: Empty for a prompt, one for a demonstration.
        pairs: None derives them from the ranks (`resolved_pairs`).
        bundle: Groups with the same key stay in one micro-batch.
        id: A digest of what the group says.
        meta: Columns of the row that its format did not use.
        tools: JSON schemas of the functions that the assistant may call, which the chat template
            describes in the prompt.
        origin: Where it was read; not part of its JSON, and equal groups may differ in it.
        weight: How much it counts in a loss, by its column `weight`. 0: it is not learned.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STORED

    prompt: tuple[Message, ...]
    responses: tuple[Response, ...] = ()
    pairs: tuple[Pair, ...] | None = None
    bundle: str | None = None
    id: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    tools: tuple[dict[str, Any], ...] = ()
    origin: Origin | None = field(default=None, compare=False)
    weight: float = 1.0


def resolved_pairs(group: Group) -> tuple[Pair, ...]:
    """The group's pairs, or if they are None, those that its ranks imply."""
    if group.pairs is not None:
        return group.pairs
    ranks = [response.rank for response in group.responses]
    return tuple(Pair(i, j) for i, j in ranking_pairs(ranks))


def copies(groups: Sequence[Group]) -> list[Group]:
    """The groups with prompts and columns that a plugin may change: others read the originals
    again.
    """
    return [replace(g, prompt=copy.deepcopy(g.prompt), meta=copy.deepcopy(g.meta)) for g in groups]


def ranking_pairs(ranks: Sequence[float | None]) -> list[tuple[int, int]]:
    """Pairs (i, j) in which response i has the better, i.e. lower, rank. Ties and missing ranks
    form no pair.
    """
    ranked = [(index, rank) for index, rank in enumerate(ranks) if rank is not None]
    pairs: list[tuple[int, int]] = []
    for i, best in ranked:
        pairs += [(i, j) for j, rank in ranked if best < rank]
    return pairs


def why_not_demonstration(group: Group) -> str:
    """Why a group is not a demonstration, and what to do with it; empty if it is one."""
    count = len(group.responses)
    if not group.prompt:
        return "is raw text without a prompt; use an algorithm that learns raw text, such as `lm`"
    if count == 0:
        return (
            "ends with the user, so nothing of it would be learned; remove the turns after the "
            "last answer, or name the column of the response: `columns: {completion: COLUMN}`"
        )
    if count > 1:
        return (
            f"has {count} responses, all of which would be learned; use an algorithm that learns "
            "comparisons"
        )
    if group.responses[0].label is False:
        return (
            "is labeled as bad, but would still be learned; remove it, or use an algorithm that "
            "learns labels"
        )
    return ""


def preview(group: Group, length: int = _PREVIEW_LENGTH) -> str:
    """The beginning of a group's prompt in quotes: people recognize it, unlike the id. Without a
    prompt it is that of its first response.
    """
    messages = [message for message in group.prompt if message["role"] == "user"] or list(
        group.prompt
    )
    text = next((response.text for response in group.responses), "")
    if messages:
        text = messages[0]["content"]
    words = " ".join(text[: 4 * length].split())
    return f"'{words if len(words) <= length else words[:length] + '...'}'"


def previews(groups: Sequence[Group]) -> str:
    """Previews of the first groups, and the number of the others."""
    return listed(groups, word=preview)


def group_id(
    prompt: Sequence[Message],
    responses: Sequence[Response] = (),
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """16 hex digits that depend only on what the prompt, the responses and the tools say."""
    texts = [r.text if r.messages is None else turns_of(r.messages) for r in responses]
    return sha256_of([turns_of(prompt), texts, *([list(tools)] if tools else [])])[:16]


def length(response: Response) -> int:
    """Tokens that the policy wrote, including its end of turn."""
    if response.action_mask is not None:
        return sum(response.action_mask)
    return len(response.tokens or ())


def with_responses(group: Group, responses: Iterable[Response], **others: Any) -> Group:
    """The prompt of a group with other responses. others: further fields."""
    return replace(group, responses=tuple(responses), **others)


def responses_of(groups: Iterable[Group]) -> list[Response]:
    """The responses of all groups, in order."""
    return [*chain.from_iterable(group.responses for group in groups)]


def prompts_of(groups: Iterable[Group]) -> list[Group]:
    """The prompt of every row with its columns, but without responses; raw text has no prompt.

    The prompt of a conversation is all that comes before its last answer to the user. Rows with the
    same words stay separate, because their columns (`answer`, `safety`) may differ; so do their
    ids. A weight is that of the responses, so the prompt has none.
    """
    prompts = []
    for group in groups:
        if group.prompt:
            words = _up_to_last_question(group)
            name = group_id(words, (), group.tools)
            if group.meta:
                columns = json.dumps(group.meta, sort_keys=True, default=str)
                name = sha256_of([name, columns])[:16]
            prompts.append(
                Group(words, id=name, meta=group.meta, tools=group.tools, origin=group.origin)
            )
    return prompts


def _up_to_last_question(group: Group) -> tuple[Message, ...]:
    """The prompt; of a demonstration with several turns, the whole conversation up to the user's
    last turn.
    """
    turns = group.responses[0].messages if len(group.responses) == 1 else None
    last = max(
        (place for place, turn in enumerate(turns or ()) if turn["role"] == "user"), default=-1
    )
    return (*group.prompt, *(turns or ())[: last + 1])


def turns_of(messages: Sequence[Message], words: Callable[[str], str] = str) -> list[list[Any]]:
    """[role, content] of each message, then its other keys as an object if it has any; without the
    `train` flags. words: the form of a content.
    """
    turns = []
    for message in messages:
        turn: list[Any] = [message["role"], words(message["content"])]
        others = {
            key: value
            for key, value in sorted(message.items())
            if key not in ("role", "content", "train")
        }
        if others:
            turn.append(others)
        turns.append(turn)
    return turns


def sha256_of(value: Any) -> str:
    """Hex digest of a value's JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


# --- groups as JSON: keys with their default value are omitted


@cache
def _stored() -> TypeAdapter[Group]:
    return TypeAdapter(Group)


def group_to_json(group: Group) -> str:
    """The group as one line of standard JSON, which `group_from_json` reads back as an equal group.

    Raises `ValueError` if `meta` holds a value that JSON cannot represent.
    """
    stored = _stored().dump_python(group, exclude_defaults=True, exclude={"origin"}, warnings=False)
    row = {"alignkit": _VERSION, **stored}
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(
            f"group {group.id!r}: meta holds a value that JSON cannot represent: {error}"
        ) from error
    try:
        line.encode()
    except UnicodeEncodeError:  # UTF-8 cannot encode half a surrogate pair, but JSON can escape it
        line = json.dumps(row, allow_nan=False)
    return line


def group_from_json(line: str | bytes | Mapping[str, Any]) -> Group:
    """The group that a line, or the object parsed from it, represents. Raises `BadRow` if it is not
    a group.
    """
    row = parse(line) if isinstance(line, str | bytes) else line
    if not isinstance(row, Mapping) or "alignkit" not in row:
        raise BadRow("not a group written by alignkit: it has no key 'alignkit'")
    if row["alignkit"] != _VERSION:
        raise BadRow(
            f"the group has format version {row['alignkit']!r}, but this alignkit reads version "
            f"{_VERSION}"
        )
    try:
        group = _stored().validate_python(
            {name: value for name, value in row.items() if name != "alignkit"}
        )
    except ValidationError as error:
        fault = faults_of(error)[0]
        if ".written" in fault or ".staleness" in fault:
            fault += "; `written` is called `action_mask` now, and `staleness` `async_level`"
        raise BadRow(f"not a group written by alignkit: {fault}") from error
    for pair in group.pairs or ():
        check_indices(pair, len(group.responses))
    check_weights(group)
    return group


def every_turn(group: Group) -> list[Message]:
    """The turns of the prompt and of every response that is a conversation."""
    turns = [*group.prompt]
    for response in group.responses:
        turns += response.messages or ()
    return turns


def check_weights(group: Group) -> None:
    """Raise `BadRow` unless the weights of the row and its turns are finite numbers >= 0; a turn's
    may be a bool.
    """
    for weight in (group.weight, *(turn.get("train", True) for turn in every_turn(group))):
        if not isinstance(weight, int | float) or not 0 <= weight <= LARGEST:
            raise BadRow(
                "'weight', and 'train' unless it is true or false, must be a number from 0 to "
                f"{LARGEST:g}, not {str(weight)[:60]!r}"
            )


def check_indices(pair: Pair, count: int) -> None:
    """Raise `BadRow` unless the pair compares two different responses out of `count`."""
    for index in (pair.better, pair.worse):
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
            raise BadRow(f"a pair names response {index!r}, but there are {count}, counted from 0")
    if pair.better == pair.worse:
        raise BadRow(f"a pair compares response {pair.better} with itself")


def write_groups(path: Path | str, groups: Iterable[Group]) -> None:
    """Write one line per group, atomically: an existing file stays in place until the new one is
    complete on disk.
    """
    with whole_file(Path(path)) as file:
        file.writelines(group_to_json(group).encode() + b"\n" for group in groups)


def read_groups(path: Path | str) -> list[Group]:
    """The groups in a file that `write_groups` wrote. Raises `DataError` that lists every line that
    is not a group.
    """
    groups, bad = [], []
    for number, row in jsonl_rows(Path(path)):
        try:
            groups.append(group_from_json(raise_if_bad(row)))
        except BadRow as error:
            bad.append(SkippedRow(str(path), number, str(error)))
    if bad:
        raise bad_rows_error(bad)
    return groups
