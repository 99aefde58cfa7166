"""What the assistant says in a response."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from alignkit import Group, Response
from alignkit_plugins.environments.calculator import Calculator
from alignkit_plugins.evaluate.honesty import HonestyAccuracy
from alignkit_plugins.formats.spoken import all_turns, answer_of, last_turn
from alignkit_plugins.rewards.math_verify import MathVerify
from alignkit_plugins.rewards.refusal import Refusal
from alignkit_plugins.rewards.text import ExactMatch
from tests.rows import assistant, user

# Turns, all that the assistant says in them, and what it says last: nothing is said in a call.
TALKS = yaml.safe_load("""
- [[], "", ""]
- [[{role: user, content: Hi}], "", ""]
- - - {role: assistant, content: Rome.}
    - {role: user, content: "Really?"}
    - {role: assistant, content: Paris.}
    - {role: user, content: "Really?"}
  - "Rome.\\n\\nParis."
  - Paris.
- - - {role: assistant, content: Let me look.}
    - {role: assistant, content: null, tool_calls: []}
  - Let me look.
  - ""
- - - {role: assistant, content: null, tool_calls: []}
    - {role: tool, content: 18 degrees}
    - {role: assistant, content: It is 18 degrees.}
  - It is 18 degrees.
  - It is 18 degrees.
""")


@pytest.mark.parametrize(("turns", "all_of_it", "last"), TALKS)
def test_only_what_the_assistant_says_is_said(turns: list[Any], all_of_it: str, last: str) -> None:
    talk = Response(messages=tuple(turns))
    assert (all_turns(talk), last_turn(talk)) == (all_of_it, last)
    assert all_turns(Response("Paris")) == last_turn(Response("Paris")) == "Paris"


# A text, and whether 5 is its answer. Thoughts may find the answer, and drop it again.
ANSWERS = yaml.safe_load(r"""
"<think>Is it 4?</think>5": true
"<think>Is it 4?</think>\n\n5": true
"<think>It is 5.</think>I do not know.": false
"<think>It is 5. But": false
"<think>3 + 1 is 5": false
"5": true
I think the answer is 5: true
""")
REWARDS: dict[str, Any] = {
    "exact_match": (ExactMatch, {"within": True}),
    "extract": (ExactMatch, {"extract": r"\d"}),
    "math_verify": (MathVerify, {}),
    "honesty": (HonestyAccuracy, {"column": "answer", "match": "contains"}),
    "calculator": (Calculator, {}),
}


@pytest.mark.silent_bug(
    "rewards: reasoning",
    "A number in the reasoning is rewarded as the answer, even if the response is cut off there.",
    "Rewards read only what follows the reasoning.",
    "huggingface/trl#4563",
    "PrimeIntellect-ai/verifiers#213",
)
@pytest.mark.parametrize("name", REWARDS)
def test_what_is_only_thought_of_is_no_answer(name: str) -> None:
    if name == "math_verify":
        pytest.importorskip("math_verify")
    kind, options = REWARDS[name]
    judge = kind(kind.Options(**options))
    for text, right in ANSWERS.items():
        if name == "calculator":
            judge.reset({"answer": "5"})
            judge.turns = (assistant(text),)
            assert judge.get_reward() == right, text
        else:
            asked = Group((user("2 + 3"),), (Response(text),), meta={"answer": "5"})
            assert judge.score([asked]) == {"": [float(right)]}, text


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
