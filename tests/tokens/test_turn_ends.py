"""The end of every learned turn, also of one in the middle and of one that only calls a tool."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from alignkit import Group, Message, Response
from alignkit.io.text import cache_folder
from alignkit.tokens.check import check_chat
from alignkit.tokens.encoder import Encoder
from alignkit_plugins.models import tiny
from alignkit_plugins.models.templates import CHATML, HERMES

MARKERS = ["<|user|>", "<|assistant|>", "<|observation|>"]
# A turn has no end of its own: the next role's marker ends it, as in GLM's templates.
GLM = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|>{{ m['content'] }}{% "
    "for c in m['tool_calls'] or [] %}<call>{{ c['function']['name'] }}</call>{% endfor %}{% "
    "else %}{{ '<|observation|>' if m['role'] == 'tool' else '<|user|>' }}{{ m['content'] }}{% "
    "endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Its markers are no tokens, so nothing ends a turn
WORDS = GLM.replace("<|", "[").replace("|>", "]")
# Only the last turn has an end of its own.
LAST = GLM.replace(
    "{% else %}{{ '<|obs", "{% if loop.last %}{{ eos_token }}{% endif %}{% else %}{{ '<|obs"
)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def said(text: str = "", calls: bool = False) -> Message:
    call: dict[str, Any] = {"type": "function", "function": {"name": "weather", "arguments": {}}}
    return Message(role="assistant", content=text, **({"tool_calls": [call]} if calls else {}))  # type: ignore[typeddict-item]


TALK = [
    said("Two."),
    user("And in Oslo?"),
    said(calls=True),
    Message(role="tool", content="3"),
    said("It is 3."),
]


def encoder(template: str) -> Encoder:
    tokenizer = AutoTokenizer.from_pretrained(tiny.source(cache_folder()))
    tokenizer.add_special_tokens({"additional_special_tokens": MARKERS})
    tokenizer.chat_template = template
    return Encoder(tokenizer)


def learned(encoder: Encoder, turns: list[Message]) -> list[str]:
    """The runs of tokens that count."""
    encoded = encoder.encode(
        Group((user("Say two."),), (Response("", messages=tuple(turns)),)), 999
    )
    assert encoded is not None
    runs: list[list[int]] = [[]]
    for token, counts in zip(encoded.rows[0].tokens, encoded.rows[0].mask, strict=True):
        if counts:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [encoder.tokenizer.decode(run) for run in runs if run]


HERMES_CALL = '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call><|im_end|>'


@pytest.mark.silent_bug(
    "templates: the next role's marker ends a turn",
    "The marker is masked as the next role's header, so the end of a turn in the middle, or of a "
    "call, is not learned, and sampling does not stop at it: the model writes call after call.",
    "The token behind a turn is learned and ends responses; a template that writes none is "
    "reported.",
    "thinking-machines-lab/tinker-cookbook#932",
    "PrimeIntellect-ai/renderers#66",
    "huggingface/trl#6044",
    "InternLM/xtuner#1997",
)
@pytest.mark.parametrize(
    ("template", "expected", "ends"),
    [
        (CHATML, ["Two.<|im_end|>", None, "It is 3.<|im_end|>"], {"<|im_end|>"}),
        (HERMES, ["Two.<|im_end|>", HERMES_CALL, "It is 3.<|im_end|>"], {"<|im_end|>"}),
        (
            GLM,
            ["Two.<|user|>", "<call>weather</call><|observation|>", "It is 3.<|im_end|>"],
            {"<|im_end|>", "<|user|>", "<|observation|>"},
        ),
        (
            LAST,
            ["Two.<|user|>", "<call>weather</call><|observation|>", "It is 3.<|im_end|>"],
            {"<|im_end|>", "<|user|>", "<|observation|>"},
        ),
        (WORDS, ["Two.", "<call>weather</call>", "It is 3.<|im_end|>"], {"<|im_end|>"}),
    ],
    ids=["chatml", "hermes", "marker", "last only", "words"],
)
def test_the_end_of_every_turn_is_learned(
    template: str, expected: list[str | None], ends: set[str]
) -> None:
    found = encoder(template)
    assert learned(found, TALK) == [text for text in expected if text]
    assert {found.tokenizer.decode([token]) for token in found.end_ids} == ends


def test_a_demonstration_that_ends_with_a_call_ends_with_its_marker() -> None:
    assert learned(encoder(GLM), [said(calls=True)]) == ["<call>weather</call><|observation|>"]
    assert learned(encoder(GLM), [said("Let me look.", calls=True)]) == [
        "Let me look.<call>weather</call><|observation|>"
    ]


def test_what_ends_turns_is_told() -> None:
    told = (
        "the chat template writes no end of turn, so responses end with EOS, or where the next "
        "turn would begin"
    )
    assert check_chat(encoder(WORDS), "m") == check_chat(encoder(GLM), "m") == [told]
