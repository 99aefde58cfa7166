"""Calls of tools as policies write them, well and badly."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from alignkit.data.group import Message
from alignkit_plugins.environments.turns import read_turn

PLAIN: Any = SimpleNamespace()
TOOLS = [{"type": "function", "function": {"name": "add"}}]


def read(text: str, first: int = 0) -> Message:
    return read_turn(text, first)


def names(turn: Message) -> list[Any]:
    return [
        (c["function"]["name"], c["function"]["arguments"], c["id"])
        for c in turn.get("tool_calls", ())
    ]


def test_calls_in_tags_are_read_in_order_and_numbered() -> None:
    turn = read(
        'Let me see.\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>{"name": "sub", "parameters": "{\\"b\\": [2]}"}</tool_call>',
        first=3,
    )
    assert names(turn) == [("add", {"a": 1}, "call00003"), ("sub", {"b": [2]}, "call00004")]
    assert turn["content"] == "Let me see." and "call_errors" not in turn


def test_a_turn_without_calls_keeps_its_words_exactly() -> None:
    assert read("  4 \n") == {"role": "assistant", "content": "  4 \n"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<tool_call>{</tool_call>", "Expecting property name"),
        ('<tool_call>{"name": "add", "arguments": {}}', "does not end with </tool_call>"),
        ("<tool_call>[1]</tool_call>", "it is list, not an object"),
        ('<tool_call>{"arguments": {}}</tool_call>', "it has no 'name'"),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', "it has no 'name'"),
        (
            '<tool_call>{"name": "add", "arguments": [1]}</tool_call>',
            "'arguments' are not an object",
        ),
        ('<tool_call>{"name": "add", "arguments": "x"}</tool_call>', "Expecting value"),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", "a call must be"),
        ("<tool_call></tool_call>", "Expecting value"),
    ],
)
def test_a_malformed_call_stays_in_the_words_and_is_named(text: str, message: str) -> None:
    turn = read(text)
    (error,) = turn["call_errors"]
    assert message in error and turn["content"] == text and "tool_calls" not in turn


def test_a_call_that_is_only_thought_of_is_none() -> None:
    text = '<think>\n<tool_call>{"name": "add", "arguments": {}}</tool_call>\n</think>\n\nNo.'
    assert read(text) == {"role": "assistant", "content": text}
