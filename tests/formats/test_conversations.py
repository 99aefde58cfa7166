"""Turns with every key that data sets use, read as messages; what is refused names the turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from alignkit import BadRow, DataError, Group, Message, Response
from alignkit.contract.formats import check_group
from alignkit.recipe.sources import DataSource, DataSpec, Loaded, load
from alignkit_plugins.formats.columns import ColumnFormat, shared_turns
from alignkit_plugins.formats.messages import Messages
from alignkit_plugins.formats.turns import read_message, tools_of
from tests.rows import user, write_rows

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}


def assistant(content: str = "", **keys: Any) -> Message:
    return Message(role="assistant", content=content, **keys)


TURNS = yaml.safe_load("""
- [{from: human, value: q}, {role: user, content: q}]
- [{role: developer, content: s}, {role: system, content: s}]
- [{from: GPT, value: a}, {role: assistant, content: a}]
- [{role: prompter, text: q}, {role: user, content: q}]
- [{from: observation, value: "3"}, {role: tool, content: "3"}]
- [{role: ipython, content: "3"}, {role: tool, content: "3"}]
- [{role: " User", content: [{type: text, value: q}]}, {role: user, content: q}]
- - {role: tool, content: "3", tool_call_id: c1, name: add}
  - {role: tool, content: "3", tool_call_id: c1, name: add}
- - {role: assistant, content: null, tool_calls: [{type: function, id: c1, function: {name: add, arguments: {x: 1}}}]}
  - {role: assistant, content: "", tool_calls: [{type: function, id: c1, function: {name: add, arguments: {x: 1}}}]}
- - {role: assistant, tool_calls: [{name: now}]}
  - {role: assistant, content: "", tool_calls: [{type: function, function: {name: now, arguments: {}}}]}
- [{role: assistant, content: a, tool_calls: null}, {role: assistant, content: a}]
- [{role: assistant, content: a, reasoning_content: b}, {role: assistant, content: a, reasoning_content: b}]
- [{role: assistant, content: a, reasoning: b}, {role: assistant, content: a, reasoning_content: b}]
- [{role: assistant, content: a, thinking: b}, {role: assistant, content: a, reasoning_content: b}]
- [{role: assistant, content: a, thinking: null}, {role: assistant, content: a}]
- [{role: assistant, content: [{type: text, text: a}, b], weight: 1.0}, {role: assistant, content: ab, train: true}]
- [{role: assistant, content: a, weight: 0}, {role: assistant, content: a, train: false}]
- [{role: assistant, content: a, weight: 1}, {role: assistant, content: a, train: true}]
- [{role: assistant, content: a, train: true, weight: 0}, {role: assistant, content: a, train: false}]
- [{role: assistant, content: a, weight: 0.5}, {role: assistant, content: a, train: 0.5}]
- [{role: assistant, content: a, train: false, weight: 0.5}, {role: assistant, content: a, train: false}]
""")
# Each is a call of `add` with {x: 1}.
CALLS = yaml.safe_load("""
- {from: function_call, value: '{"name": "add", "arguments": {"x": 1}}'}
- {from: function_call, value: '[{"name": "add", "arguments": "{\\"x\\": 1}"}]'}
- {role: assistant, tool_calls: [{function: {name: add, arguments: '{"x": 1}'}}]}
- {role: assistant, content: "", function_call: {name: add, arguments: {x: 1}}}
- {role: assistant, tool_calls: [{name: add, parameters: {x: 1}}]}
- {role: tool_call, content: '{"name": "add", "arguments": {"x": 1}}'}
""")


@pytest.mark.silent_bug(
    "templates: lost parts",
    "A `developer` message is unknown to the template and disappears.",
    "It is read as a system message.",
    "sgl-project/sglang#40082",
)
@pytest.mark.parametrize(
    ("turn", "expected"), [*TURNS, *((call, assistant(tool_calls=[CALL])) for call in CALLS)]
)
def test_every_way_to_write_a_turn(turn: dict[str, Any], expected: Message) -> None:
    found = read_message(turn, "messages[0]")
    assert found == expected and type(found.get("train")) is type(expected.get("train"))


REFUSED = yaml.safe_load("""
- [q, "must be a message, not text"]
- [{role: narrator, content: x}, unknown role 'narrator']
- [{role: 5, content: x}, unknown role '5']
- [{role: user, content: [[nested, [lists]]]}, content other than text]
- [{role: user, content: [{type: [text], text: a}]}, "content other than text: {'type': ['text']"]
- [{role: user, content: [{type: image_url, image_url: x}]}, "content other than text: {'type': 'image_url'"]
- [{role: user, content: {text: x}}, "must have text as its content, not an object"]
- [{role: user, content: null}, "must have text as its content, not null"]
- [{role: assistant, content: a, thinking: [b]}, "text as its reasoning, not a list"]
- [{role: user, content: a, thinking: b}, only assistant turns have reasoning]
- [{from: function_call, value: add(1)}, "not valid JSON of a tool or a call: 'add(1)'"]
- [{from: function_call, value: "3"}, "a tool call must be {name, arguments}"]
- [{role: assistant, tool_calls: [{arguments: {}}]}, a tool call must have a name]
- [{role: assistant, tool_calls: [{name: f, arguments: x=1}]}, not valid JSON]
- [{role: assistant, tool_calls: [{name: f, arguments: [1]}]}, the arguments of 'f' must be an obj]
- [{role: assistant, content: a, weight: -0.5}, "weight must be a number of 0 or more, not '-0.5'"]
- [{role: assistant, content: a, weight: .inf}, "0 or more, not 'inf'"]
- [{role: user, content: a, tool_calls: [{name: f}]}, only assistant turns]
- [{role: assistant, content: a, train: 1}, train must be true or false]
- [{role: assistant, content: a, loss: false}, "has 'loss', which would be lost"]
- [{role: system, content: a, tools: '[{"name": "f"}]'}, "has 'tools', which"]
- [{role: user, content: a, images: [x.png]}, "has 'images', which would be"]
""")


@pytest.mark.parametrize(("turn", "reason"), REFUSED)
def test_other_turns_are_refused_by_name(turn: Any, reason: str) -> None:
    with pytest.raises(BadRow) as error:
        read_message(turn, "messages[3]")
    assert str(error.value).startswith("messages[3]") and reason in str(error.value)


def test_tools_get_the_envelope_that_templates_expect() -> None:
    schema = {"name": "add", "parameters": {}}
    wrapped = {"type": "function", "function": schema}
    for tools in ([schema], '[{"name": "add", "parameters": {}}]', [wrapped]):
        assert tools_of(tools) == (wrapped,)
    assert tools_of(None) == tools_of("") == tools_of("[]") == ()
    for bad in ("add", "3", [3], 3):
        with pytest.raises(BadRow, match="tool"):
            tools_of(bad)


def test_a_conversation_with_calls_is_a_demonstration_of_all_of_them() -> None:
    written = [{"from": "human", "value": "q"}, CALLS[0], {"from": "observation", "value": ""}]
    written.append({"from": "gpt", "value": "3"})
    turns = ColumnFormat.conversation(written, "conversations")
    for label, prompt, response in (
        (None, turns[:1], Response(messages=turns[1:])),
        (True, turns[:3], Response(text="3", label=True)),
    ):
        assert ColumnFormat.demonstration(turns, label=label) == (prompt, response)
        check_group(Group(prompt, (response,)))


def test_a_single_answer_with_a_call_or_reasoning_keeps_it() -> None:
    for turn in (assistant(tool_calls=[CALL]), assistant("a", reasoning_content="b")):
        response = ColumnFormat.answer((turn,))
        assert response == Response(messages=(turn,))
        check_group(Group(({"role": "user", "content": "q"},), (response,)))


NOT_UNICODE = [
    assistant("a", reasoning_content="\0"),
    assistant(tool_calls=[{"name": "\ud800"}]),
    assistant("\0"),
]


@pytest.mark.parametrize("turn", NOT_UNICODE)
def test_nul_and_surrogates_are_refused_in_every_part(turn: Message) -> None:
    with pytest.raises(BadRow, match=r"NUL|not valid Unicode"):
        check_group(Group((user("q"),), (Response(messages=(turn,)),)))


HUGE = "x" * 10**7
# HUGE stands for that many letters.
BAD = yaml.safe_load(r"""
only a greeting: [{role: assistant, content: a}]
empty: []
a last system turn:
  [{role: user, content: q}, {role: assistant, content: a}, {role: system, content: x}]
an unknown role: [{role: narrator, content: x}, {role: assistant, content: a}]
a NUL: [{role: user, content: "a\0b"}, {role: assistant, content: a}]
text: hello
a number: 5
a huge role: [{role: HUGE, content: x}, {role: assistant, content: a}]
a huge call:
  [{role: user, content: q}, {role: assistant, tool_calls: [{name: f, arguments: HUGE}]}]
""")


def loaded(path: Path, rows: Any, on_bad_row: Any = "error") -> Loaded:
    """What a file of these conversations is read as."""
    write_rows(path, [{"messages": row} for row in rows])
    spec = DataSpec((DataSource(path=path, on_bad_row=on_bad_row),))
    formats: Any = {"messages": Messages}
    return load(spec, formats=formats, commit=Mock(), stage_data=lambda name: path)


@pytest.mark.parametrize("conversation", BAD.values(), ids=BAD)
def test_a_bad_conversation_is_named_by_file_and_row_in_a_short_line_and_may_be_skipped(
    tmp_path: Path, conversation: Any
) -> None:
    bad = json.loads(json.dumps(conversation).replace("HUGE", HUGE))
    path, rows = tmp_path / "d.jsonl", [[Q, A], bad, [Q, A]]
    with pytest.raises(DataError) as error:
        loaded(path, rows)
    assert f"{path}:2: " in str(error.value) and len(str(error.value)) < 600
    skipping = loaded(path, rows, "skip")
    assert len(skipping.groups) == 2 and [row.row for row in skipping.skipped] == [2]


def test_shared_turns_end_at_the_first_difference() -> None:
    one, two = user("a"), user("b")
    others = ([one], [two], [one, one], [one, two, one])
    assert [shared_turns([one, two], other) for other in others] == [1, 0, 1, 2]


def test_only_demonstrations_have_turns_of_a_weight() -> None:
    half, asked = assistant("a", train=0.5), user("q")
    check_group(Group((asked,), (Response(messages=(half,)),)))
    pair = (Response(text="a", rank=1), Response(text="b", rank=2))
    for prompt, responses in (
        ((asked,), (Response(messages=(half,), scores={"reward": 1.0}),)),
        ((asked,), (Response(messages=(half,), label=True),)),
        ((asked, half, asked), pair),
        ((asked, half, asked), (Response(text="a", label=True),)),
    ):
        with pytest.raises(BadRow, match="only demonstrations have turns of a weight"):
            check_group(Group(prompt, responses))
