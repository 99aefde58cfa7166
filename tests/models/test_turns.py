"""Several turns in one response: what the template writes between them, and how they are
sampled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignkit.data.chat_templates import PLAIN
from alignkit.data.group import Message
from alignkit.errors import DataError
from alignkit.tokens.encoder import Encoder
from alignkit_plugins.environments.turns import Turns
from alignkit_plugins.models.templates import CHATML, HERMES
from alignkit_plugins.models.tiny import _tokenizer

# What the template writes

TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {}}}
QUESTION: Message = {"role": "user", "content": "2 and 2?"}
CALL = {"type": "function", "id": "call00000", "function": {"name": "add", "arguments": {"a": 1}}}
STRIPS = HERMES.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}")
LAST_TOOLS = CHATML.replace(
    "{{ '<|im_start|>' + m", "{% if loop.last %}{{ tools }}{% endif %}{{ '<|im_start|>' + m"
)


def with_template(template: str) -> Encoder:
    tokenizer = _tokenizer()
    tokenizer.chat_template = template
    return Encoder(tokenizer)


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
    encoder = with_template(HERMES)
    written = encoder.text('<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>')
    odd = tuple(token for letter in "It is 4." for token in encoder.text(letter))
    assert odd != encoder.text("It is 4.")
    end = encoder.end_of_turn
    turns_ = Turns(encoder, [TOOL])
    first = turns_.read((*written, *end))
    answers: list[Message] = [
        {"role": "tool", "name": "add", "content": "4 <|im_end|>", "tool_call_id": "call00000"},
        {"role": "user", "content": "Well?"},
    ]
    piece = turns_.between([QUESTION], first, answers, end[-1])
    assert piece is not None
    ids = [*encoder.prompt([QUESTION], [TOOL]), *written, *end, *piece, *odd, *end]
    last: Message = {"role": "assistant", "content": "It is 4."}
    whole = encoder.chat.render(
        encoder.chat.prepare([QUESTION, first, *answers, last]), False, [TOOL]
    )
    assert encoder.tokenizer.decode(ids) == whole.replace("\ufdd0", "").removesuffix("\n")
    assert list(piece).count(end[-1]) == 2, "a control token in an answer is only text"


def test_a_turn_that_a_stop_string_ended_gets_its_end_of_turn() -> None:
    encoder = with_template(HERMES)
    turn: Message = {"role": "assistant", "content": "STOP"}
    answers: list[Message] = [{"role": "user", "content": "Go on."}]
    ended = Turns(encoder).between([QUESTION], turn, answers, encoder.end_of_turn[-1])
    stopped = Turns(encoder).between([QUESTION], turn, answers, encoder.text("P")[-1])
    assert ended is not None and stopped == (*encoder.end_of_turn, *ended)


def test_a_malformed_call_is_answered_under_a_template_that_wants_a_call() -> None:
    strict = HERMES.replace(
        "{% if m['role'] == 'tool' %}",
        "{% if m['role'] == 'tool' %}{% if not ns.called %}{{ raise_exception('no call') }}{% "
        "endif %}",
    ).replace("{% for m in (mess", "{% set ns = namespace(called=false) %}{% for m in (mess")
    strict = strict.replace(
        ("{{ '<|im_start|>' + m"),
        ("{% if m['tool_calls'] %}{% set ns.called = true %}{% endif %}{{ '<|im_start|>' + m"),
        1,
    )
    turns_ = Turns(with_template(strict), [TOOL])
    turn = turns_.read(turns_.encoder.text("<tool_call>{"))
    assert turns_.between([QUESTION], turn, [{"role": "tool", "content": "no"}], 5)


@pytest.mark.parametrize("template", [HERMES, CHATML, HERMES.replace("'<tool_response>\n'", "''")])
def test_templates_that_append_are_accepted(template: str) -> None:
    encoder = with_template(template)
    Turns(encoder, [TOOL] if template != CHATML else []).check("tool")
    Turns(encoder).check("user")


@pytest.mark.parametrize(
    ("template", "tools", "message"),
    [
        (
            STRIPS,
            [],
            "changes earlier turns .* such as earlier reasoning; .* set model.chat_template",
        ),
        (CHATML, [TOOL], "does not write the tools that the policy may call"),
        (
            HERMES.replace("call['function']['name']", "'call'"),
            [TOOL],
            "does not write calls of tools",
        ),
        (
            HERMES.replace("' + m['content'] + '\n</tool_resp", "' + '\n</tool_resp"),
            [TOOL],
            "drops the message of the role 'tool'",
        ),
        (LAST_TOOLS, [TOOL], "changes earlier turns"),
        (PLAIN.replace("+ eos_token", ""), [], "writes no end of turn"),
    ],
)
def test_templates_that_do_not_append_are_refused(
    template: str, tools: list[Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Turns(with_template(template), tools).check("tool")


def test_the_template_hermes_needs_its_tokens(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    from alignkit.data.chat_templates import set_chat_template
    from alignkit.errors import RunFailed

    tokenizer = _tokenizer()
    set_chat_template(tokenizer, "hermes")
    assert tokenizer.chat_template == HERMES
    from tokenizers import Tokenizer, models

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(RunFailed, match="lacks tokens that hermes needs"):
        set_chat_template(bare, "hermes")
