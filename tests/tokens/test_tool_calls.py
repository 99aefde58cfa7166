"""Calls of tools as policies write them, well and badly."""

from __future__ import annotations

import math
from typing import Any

import pytest

from alignkit import Environment
from alignkit.contract.environment import answers, tool_schemas
from alignkit.errors import PluginError
from alignkit.tokens.turns import read_turn
from tests.rows import cells


def test_calls_in_tags_are_read_in_order_and_numbered() -> None:
    text = """ Let me see. 
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
    assert turn["content"] == " Let me see. " and "call_errors" not in turn


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


MALFORMED = """
<tool_call>{</tool_call>                                     | Expecting property name
<tool_call>{"name": "add", "arguments": {}}                  | does not end with </tool_call>
<tool_call>[1]</tool_call>                                   | it is list, not an object
<tool_call>{"name": 3, "arguments": {}}</tool_call>          | it has no 'name'
<tool_call>{"name": "add", "arguments": [1]}</tool_call>     | 'arguments' are not an
<tool_call>{"name": "add", "arguments": "x"}</tool_call>     | }</tool_call>: Expecting value
<tool_call>{"name": "add", "arguments": {"a": 1, "a": 2}}</tool_call> | has the key 'a' twice
<tool_call>DEEP</tool_call>                                  | a call must be
"""


@pytest.mark.parametrize(("text", "message"), cells(MALFORMED.replace("DEEP", "[" * 100_000)))
def test_a_malformed_call_stays_in_the_words_and_is_named(text: str, message: str) -> None:
    turn = read_turn(text, 0)
    (error,) = turn["call_errors"]
    assert message in error and turn["content"] == text and "tool_calls" not in turn


CALLS = """\
{"name": "add", "arguments": {"a": 1, "b": 2}}
{"name": "add", "arguments": {"c": 1}}
{
[]
"""


class Adds(Environment):
    def add(self, a: int, b: int = 0) -> Any:
        return {"é": a + b} if b else math.nan


def test_calls_are_answered_in_order_and_what_is_wrong_is_named() -> None:
    environment = Adds(None)
    turn = read_turn("".join(f"<tool_call>{call}</tool_call>" for call in CALLS.splitlines()))
    told = [answer["content"] for answer in answers(environment, turn)]
    assert told[0] == '{"é": 3}' and environment.refused_calls == 1
    assert told[1] == '{"error": "a: Missing required argument; c: Unexpected keyword argument"}'
    assert len(told) == 4 and "Expecting" in told[2] and "it is list" in told[3]
    turn = read_turn('<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>')
    with pytest.raises(TypeError, match="'add' must return text or JSON values, not float"):
        answers(environment, turn)


def test_an_argument_without_a_name_is_refused() -> None:
    def only(self: Any, a: int, /) -> None: ...

    with pytest.raises(PluginError, match=r"tool 'add': 'a: .*' has no name"):
        tool_schemas(type("Only", (Adds,), {"add": only})(None))
