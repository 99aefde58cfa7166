"""Calls of tools as policies write them, well and badly."""

from __future__ import annotations

import pytest

from alignkit_plugins.environments.turns import read_turn


def test_calls_in_tags_are_read_in_order_and_numbered() -> None:
    text = """Let me see.
<tool_call>
{"name": "add", "arguments": {"a": 1}}
</tool_call>
<tool_call>{"name": "sub", "parameters": "{\\"b\\": [2]}"}</tool_call>"""
    turn = read_turn(text, 3)
    calls = [(call["function"], call["id"]) for call in turn["tool_calls"]]
    assert calls == [
        ({"name": "add", "arguments": {"a": 1}}, "call00003"),
        ({"name": "sub", "arguments": {"b": [2]}}, "call00004"),
    ]
    assert turn["content"] == "Let me see." and "call_errors" not in turn


@pytest.mark.parametrize(
    "text",
    [
        "  4 \n",
        # Only thought of
        '<think>\n<tool_call>{"name": "add", "arguments": {}}</tool_call>\n</think>\n\nNo.',
        '</think><tool_call>{"name": "add", "arguments": {}}</tool_call></think>No.',
    ],
)
def test_a_turn_without_calls_keeps_its_words_exactly(text: str) -> None:
    assert read_turn(text, 0) == {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<tool_call>{</tool_call>", "Expecting property name"),
        ('<tool_call>{"name": "add", "arguments": {}}', "does not end with </tool_call>"),
        ("<tool_call>[1]</tool_call>", "it is list, not an object"),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', "it has no 'name'"),
        ('<tool_call>{"name": "add", "arguments": [1]}</tool_call>', "'arguments' are not an"),
        ('<tool_call>{"name": "add", "arguments": "x"}</tool_call>', "Expecting value"),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", "a call must be"),
    ],
)
def test_a_malformed_call_stays_in_the_words_and_is_named(text: str, message: str) -> None:
    turn = read_turn(text, 0)
    (error,) = turn["call_errors"]
    assert message in error and turn["content"] == text and "tool_calls" not in turn
