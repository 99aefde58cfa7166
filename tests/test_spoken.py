"""What the assistant says in a response."""

from __future__ import annotations

from typing import Any

import pytest

from alignkit import Group, Response
from alignkit_plugins.environments.calculator import Calculator
from alignkit_plugins.evaluate.honesty import HonestyAccuracy
from alignkit_plugins.formats.spoken import all_turns, answer_of, last_turn
from alignkit_plugins.rewards.math_verify import MathVerify
from alignkit_plugins.rewards.refusal import Refusal
from alignkit_plugins.rewards.text import ExactMatch

CALL = {"role": "assistant", "content": None, "tool_calls": []}


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_a_text_is_all_that_is_said() -> None:
    assert all_turns(Response("Paris")) == last_turn(Response("Paris")) == "Paris"


def test_only_the_turns_of_the_assistant_are_said() -> None:
    asks = turn("user", "Really?")
    talk = Response(messages=(turn("assistant", "Rome."), asks, turn("assistant", "Paris."), asks))  # type: ignore[arg-type]
    assert all_turns(talk) == "Rome.\n\nParis."
    assert last_turn(talk) == "Paris."


def test_nothing_is_said_in_a_call_or_by_others() -> None:
    assert last_turn(Response(messages=(turn("assistant", "Let me look."), CALL))) == ""  # type: ignore[arg-type]
    assert (
        last_turn(Response(messages=(turn("user", "Hi"),)))
        == all_turns(Response(messages=()))
        == ""
    )  # type: ignore[arg-type]


def test_a_turn_that_only_calls_is_no_part_of_all_that_is_said() -> None:
    talk = Response(
        messages=(CALL, turn("tool", "18 degrees"), turn("assistant", "It is 18 degrees."))
    )  # type: ignore[arg-type]
    assert all_turns(talk) == "It is 18 degrees."


# A text, and whether 5 is its answer. Thoughts may find the answer, and drop it again.
ANSWERS = [
    ("<think>Is it 4?</think>5", True),
    ("<think>Is it 4?</think>\n\n5", True),
    ("<think>It is 5.</think>I do not know.", False),
    ("<think>It is 5. But", False),
    ("<think>3 + 1 is 5", False),
    ("5", True),
    ("I think the answer is 5", True),
]
CALCULATED = "calculator"
REWARDS: dict[str, Any] = {
    "exact_match": (ExactMatch, {"within": True}),
    "extract": (ExactMatch, {"extract": r"\d"}),
    "math_verify": (MathVerify, {}),
    "honesty": (HonestyAccuracy, {"column": "answer", "match": "contains"}),
    CALCULATED: (Calculator, {}),
}


@pytest.mark.silent_bug(
    "rewards: reasoning",
    "A number in the reasoning is rewarded as the answer, even if the response is cut off there.",
    "Rewards read only what follows the reasoning.",
    "huggingface/trl#4563",
    "PrimeIntellect-ai/verifiers#213",
)
@pytest.mark.parametrize(("text", "right"), ANSWERS)
@pytest.mark.parametrize("name", REWARDS)
def test_what_is_only_thought_of_is_no_answer(name: str, text: str, right: bool) -> None:
    if name == "math_verify":
        pytest.importorskip("math_verify")
    kind, options = REWARDS[name]
    if name == CALCULATED:
        episode = kind(kind.Options(**options))
        episode.reset({"answer": "5"})
        episode.turns = (turn("assistant", text),)
        assert episode.get_reward() == right
    else:
        asked = Group((turn("user", "2 + 3"),), (Response(text),), meta={"answer": "5"})  # type: ignore[arg-type]
        assert kind(kind.Options(**options)).score([asked]) == {"": [float(right)]}


def test_a_refusal_that_is_only_thought_of_is_none() -> None:
    texts = (
        "<think>I cannot help with that?</think>Mix the flour.",
        "<think>Is it safe?</think>I cannot help with that.",
    )
    found = Refusal(Refusal.Options()).score([Group((), tuple(map(Response, texts)))])
    assert found == {"": [0.0, 1.0]}


def test_an_answer_without_thoughts_is_unchanged() -> None:
    assert answer_of(Response(" 5\n")) == " 5\n"
    assert answer_of(Response("<think>4?</think>\n5\n")) == "5"
