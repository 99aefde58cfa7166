"""What plugins ask of groups and their columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignkit import DataError, Group, Message, Response
from alignkit.contract.reward import REWARD_KEY
from alignkit.data.group import (
    assistant_turn,
    preview,
    resolved_pairs,
    with_responses,
)
from alignkit.errors import did_you_mean


def with_labels(group: Group) -> Group:
    """The group with labels instead of pairs and ranks.

    A response without a label is good if it wins more of its pairs than it loses, bad if it loses
    more. Responses with neither a label nor such a balance are left out.
    """
    balance = [0.0] * len(group.responses)
    for pair in resolved_pairs(group):
        balance[pair.better] += 2 * pair.p - 1
        balance[pair.worse] -= 2 * pair.p - 1
    labeled = []
    for response, wins in zip(group.responses, balance, strict=True):
        if response.label is not None or wins:
            label = wins > 0 if response.label is None else response.label
            labeled.append(replace(response, label=label, rank=None))
    return with_responses(group, labeled, pairs=())


def with_score(group: Group, scored: Group, name: str) -> Group:
    """The group with the reward of the scored one, under another name."""
    responses = []
    for old, new in zip(group.responses, scored.responses, strict=True):
        responses.append(replace(old, scores={**old.scores, name: new.scores[REWARD_KEY]}))
    return with_responses(group, responses)


# What functions and services get of a turn
PASSED = ("role", "content", "reasoning_content", "tool_calls", "name", "tool_call_id")


def plain_turns(turns: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Turns as a user's function or service gets them, like TRL's: with their calls of tools."""
    empty = dict.fromkeys(PASSED[:2], "")
    return [empty | {key: turn[key] for key in PASSED if turn.get(key)} for turn in turns]


def turns_of_response(response: Response) -> tuple[Message, ...]:
    """The turns of a response, which is one if it is a text."""
    return response.messages or (assistant_turn(response.text),)


def prompt_to_row(number: int, group: Group) -> list[Any]:
    """A prompt as a row of `StepContext.map`: its number, its messages and, if it has any, its
    tools.
    """
    return [number, list(group.prompt), *([list(group.tools)] if group.tools else [])]


def prompts_from_rows(rows: Sequence[Sequence[Any]]) -> list[Group]:
    """The prompts of rows that `prompt_to_row` made."""
    return [
        Group(tuple(prompt), tools=tuple(tools[0]) if tools else ()) for _, prompt, *tools in rows
    ]


def row_of(group: Group) -> str:
    """How messages name a prompt: its beginning, and where it was read."""
    return f"the prompt {preview(group)}{f' ({group.origin})' if group.origin else ''}"


def column_of(reader: str, group: Group, column: str, help: str = "") -> Any:
    """What a prompt's column holds, which may be None. Raises DataError if there is no such column.

    reader: begins the message, such as `exact_match`. help: what to do; default: the column with
    the nearest name.
    """
    if column in group.meta:
        return group.meta[column]
    names = ", ".join(group.meta) or "none"
    help = help or did_you_mean(column, group.meta)
    text = f"{reader}: {row_of(group)} has no column '{column}' (its columns: {names})"
    raise DataError(f"{text}\nhelp: {help}" if help else text)


def turns_text(turns: Iterable[Message]) -> str:
    """What turns say, with their reasoning and tool calls in brackets."""
    parts = []
    for turn in turns:
        parts += [f"[thinks: {turn['reasoning_content']}]"] if turn.get("reasoning_content") else []
        content = turn.get("content") or ""
        parts += [content] if content.strip() else []
        parts += calls_of(turn)
    return " ".join(parts)


def calls_of(turn: Mapping[str, Any]) -> list[str]:
    """The tool calls of a turn as text, such as `[calls add({"a": 1})]`."""
    texts = []
    for call in turn.get("tool_calls") or ():
        function = call.get("function", call) if isinstance(call, dict) else {}
        arguments = function.get("arguments")
        if not isinstance(arguments, str):  # a text is JSON already
            arguments = json.dumps(arguments, ensure_ascii=False)
        texts.append(f"[calls {function.get('name')}({arguments})]")
    return texts


def cut(text: str, longest: int, mark: str = "...") -> str:
    """The beginning of a text that is longer, with a mark at its end; both have at most `longest`
    characters.
    """
    if len(text) <= longest:
        return text
    return text[: longest - len(mark)].rstrip() + mark
