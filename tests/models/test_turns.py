"""Several turns in one response: what the template writes between them, and how they are
sampled.
"""

from __future__ import annotations

from typing import Any

import pytest
from tiny import encoder, user

from alignkit.data.group import Message
from alignkit.errors import DataError
from alignkit.tokens.chat_templates import PLAIN
from alignkit.tokens.turns import Turns
from alignkit_plugins.bases.templates import CHATML, HERMES

TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {}}}
QUESTION = user("2 and 2?")
STRIPS = HERMES.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}")
LAST_TOOLS = CHATML.replace(
    "{{ '<|im_start|>' + m", "{% if loop.last %}{{ tools }}{% endif %}{{ '<|im_start|>' + m"
)
# Refuses the result of a tool that no message calls
STRICT = (
    HERMES.replace(
        "{% if m['role'] == 'tool' %}",
        "{% if m['role'] == 'tool' %}{% if not ns.called %}{{ raise_exception('no call') }}"
        "{% endif %}",
    )
    .replace("{% for m in (mess", "{% set ns = namespace(called=false) %}{% for m in (mess")
    .replace(
        "{{ '<|im_start|>' + m",
        "{% if m['tool_calls'] %}{% set ns.called = true %}{% endif %}{{ '<|im_start|>' + m",
        1,
    )
)


@pytest.mark.silent_bug(
    "sampling: turns",
    "A sample is tokenized again, and its log-probabilities belong to other tokens.",
    "The sampled tokens are kept over all turns.",
    "rllm-org/rllm#816",
    "stanford-cs336/assignment5-alignment#15",
)
def test_the_pieces_make_the_rendered_conversation() -> None:
    """The policy's own tokens, even if they are not those of its words, and the template's text
    between them.
    """
    made = encoder(HERMES)
    turns, end = Turns(made, [TOOL]), made.end_of_turn
    written = made.text('<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>')
    odd = tuple(token for letter in "It is 4." for token in made.text(letter))
    assert odd != made.text("It is 4.")
    first = turns.read((*written, *end))
    result = {"name": "add", "content": "4 <|im_end|>", "tool_call_id": "call00000"}
    answers = [Message(role="tool", **result), user("Well?")]  # type: ignore[typeddict-item]
    piece = turns.between([QUESTION], first, answers, end[-1])
    assert piece is not None
    ids = [*made.prompt([QUESTION], [TOOL]), *written, *end, *piece, *odd, *end]
    last = Message(role="assistant", content="It is 4.")
    messages = made.chat.prepare([QUESTION, first, *answers, last])
    whole = made.chat.render(messages, False, [TOOL])
    assert made.tokenizer.decode(ids) == whole.replace("\ufdd0", "").removesuffix("\n")
    assert list(piece).count(end[-1]) == 2, "a control token in an answer is only text"


def test_a_turn_that_a_stop_string_ended_gets_its_end_of_turn() -> None:
    made = encoder(HERMES)
    turn, end = Message(role="assistant", content="STOP"), made.end_of_turn
    ended, stopped = (
        Turns(made).between([QUESTION], turn, [user("Go on.")], last)
        for last in (end[-1], made.text("P")[-1])
    )
    assert ended is not None and stopped == (*end, *ended)


def test_a_malformed_call_is_answered_under_a_template_that_wants_a_call() -> None:
    turns = Turns(encoder(STRICT), [TOOL])
    turn = turns.read(turns.encoder.text("<tool_call>{"))
    assert turns.between([QUESTION], turn, [Message(role="tool", content="no")], 5)


@pytest.mark.parametrize(
    ("template", "tools", "message"),
    [
        (HERMES, [TOOL], None),
        (CHATML, [], None),
        (HERMES.replace("'<tool_response>\n'", "''"), [TOOL], None),
        (
            STRIPS,
            [],
            r"changes earlier turns .* such as earlier reasoning; .* model\.chat_template",
        ),
        (LAST_TOOLS, [TOOL], "changes earlier turns"),
        (CHATML, [TOOL], "does not write the tools"),
        (HERMES.replace("call['function']['name']", "'call'"), [TOOL], "does not write calls"),
        (
            HERMES.replace("' + m['content'] + '\n</tool_resp", "' + '\n</tool_resp"),
            [TOOL],
            "role 'tool'",
        ),
        (PLAIN.replace("+ eos_token", ""), [], "writes no end of turn"),
    ],
)
def test_only_templates_that_append_are_accepted(
    template: str, tools: list[Any], message: str | None
) -> None:
    turns = Turns(encoder(template), tools)
    if message is None:
        turns.check("tool")
        turns.check("user")
        return
    with pytest.raises(DataError, match=message):
        turns.check("tool")
