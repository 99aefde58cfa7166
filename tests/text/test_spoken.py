"""What the assistant says in a response, and who reads it: calls of tools are a part of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import yaml

from alignkit import Group, Pair, Response
from alignkit.data.group import group_to_json
from alignkit.evaluation.split import loose_key
from alignkit_plugins.ai_feedback import rlaif, rubric
from alignkit_plugins.compare.pairs import choices
from alignkit_plugins.compare.tables import side_by_side
from alignkit_plugins.data_tools import near
from alignkit_plugins.data_tools.clean import Rules
from alignkit_plugins.data_tools.files import Row
from alignkit_plugins.environments.calculator import Calculator
from alignkit_plugins.evals import judged
from alignkit_plugins.monitors.reward_hacking import measured
from alignkit_plugins.people.texts import shown_turn
from alignkit_plugins.report import samples
from alignkit_plugins.report.data_card import card
from alignkit_plugins.rewards.exact_match import ExactMatch
from alignkit_plugins.rewards.honesty import HonestyAccuracy
from alignkit_plugins.rewards.http import HTTP
from alignkit_plugins.rewards.length import Length
from alignkit_plugins.rewards.math_verify import MathVerify
from alignkit_plugins.rewards.python import _arguments
from alignkit_plugins.rewards.refusal import Refusal
from alignkit_plugins.rewards.regex import Regex
from alignkit_plugins.rewards.repetition import Repetition
from alignkit_plugins.text.spoken import (
    all_turns,
    answer_of,
    as_judged,
    for_judges,
    last_turn,
    transcript,
)
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


CALL: Any = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
AS_TEXT = '{"city": "Oslo"}'
SAID = f"[calls weather({AS_TEXT})]"
TOOLS: Any = ({"type": "function", "function": {"name": "weather"}},)
RESULT: Any = {"role": "tool", "content": "Rain"}


def calling(content: Any = "", *more: Any, **keys: Any) -> Response:
    """A response whose first turn calls a tool."""
    turn: Any = {"role": "assistant", "content": content, "tool_calls": [CALL], **keys}
    return Response(messages=(turn, *more))


# A response, what judges read of it, and what a function reads that gets the thoughts, if more.
FORMS: list[tuple[Response, str, str]] = [
    (calling(), SAID, ""),
    (calling(None), SAID, ""),
    (calling("Let me look."), f"Let me look. {SAID}", ""),
    (calling(tool_calls=[CALL, CALL]), f"{SAID} {SAID}", ""),
    (calling(tool_calls=[{"function": {"name": "weather", "arguments": AS_TEXT}}]), SAID, ""),
    (calling(reasoning_content="Hm."), SAID, f"<think>\nHm.\n</think>\n\n {SAID}"),
    (calling("<think>Hm.</think>Look."), f"Look. {SAID}", f"<think>Hm.</think>Look. {SAID}"),
    (
        calling("", RESULT, assistant("It rains.")),
        f"assistant: {SAID}\n\ntool: Rain\n\nassistant: It rains.",
        f"{SAID}\n\nIt rains.",
    ),
    (Response("<think>Hm.</think>No."), "No.", "<think>Hm.</think>No."),
    (Response(" plain "), " plain ", ""),
]


@pytest.mark.parametrize(("response", "judged", "with_thoughts"), FORMS)
def test_calls_are_read_in_every_form(response: Response, judged: str, with_thoughts: str) -> None:
    assert as_judged(response) == judged
    assert all_turns(response, thoughts=True) == (with_thoughts or judged)
    assert "calls" not in all_turns(response, calls=False) + answer_of(response)


def test_judges_read_tools_and_earlier_calls() -> None:
    system: Any = {"role": "system", "content": "Be brief."}
    (turn,) = calling().messages or ()
    prompt = (user("Weather?"), turn, RESULT)
    tools = 'Tools: [{"type": "function", "function": {"name": "weather"}}]'
    rest = f"\n\nuser: Weather?\n\nassistant: {SAID}\n\ntool: Rain"
    for given, begins in [((), ""), ((system,), "Be brief.\n\n")]:
        group = Group((*given, *prompt), tools=TOOLS)
        assert transcript(for_judges(group)) == f"system: {begins}{tools}{rest}"
        assert for_judges(Group(group.prompt)) == list(group.prompt)
        assert group.prompt == (*given, *prompt)


def asked(response: Response) -> Group:
    """With another answer, which is worse."""
    both = response, Response("No.", source="b")
    return Group((user("Where?"),), both, (Pair(0, 1),), tools=TOOLS, meta={"answer": "Oslo"})


SERVICE = HTTP.Options(server={"base_url": "http://localhost"})


def length_of(response: Response) -> Any:
    return Length(Length.Options(unit="characters")).score([asked(response)])[0]


def text_reward(kind: Any, **options: Any) -> Any:
    def scores(response: Response) -> Any:
        return kind(kind.Options(**options)).score([asked(response)])[0]

    return scores


def answer_in_report(response: Response) -> Any:
    """The answer as a stored sample."""
    line = json.loads(group_to_json(asked(replace(response, source="a"))))
    return samples._answer(line["responses"], "a", "")["text"]


# Who reads a response, and what it makes of a call of a tool, by hand
READERS: list[tuple[Any, Any]] = [
    (lambda one: rlaif.items_at([asked(one)], [(0, 0, 1)])[0][1], SAID),
    (lambda one: rlaif.pairs_to_judge([asked(one)])[0], [(0, 0, 1)]),
    (lambda one: rubric.answered([asked(one)])[0][1][1], SAID),
    (lambda one: judged._texts(asked(replace(one, source="a")), "a", "b"), [(SAID, "No.")]),
    (lambda one: _arguments([(asked(one), one)], False)["completions"], [SAID]),
    (lambda one: _arguments([(asked(one), one)], False)["tools"], [list(TOOLS)]),
    (lambda one: _arguments([(asked(one), one)], True)["completions"][0][0]["tool_calls"], [CALL]),
    (lambda one: HTTP._body(HTTP(SERVICE), asked(one), one)["response"][0]["tool_calls"], [CALL]),
    (lambda one: HTTP._body(HTTP(SERVICE), asked(one), one)["tools"], list(TOOLS)),
    (length_of, len(SAID)),
    (lambda one: choices([asked(one)])[0].longer, len(SAID) - 3),
    (lambda one: card([asked(one)])["response_characters"]["most"], len(SAID)),
    (text_reward(Regex, pattern="weather.*Oslo"), 1.0),
    (text_reward(Repetition, n=1), -0.0),
    (answer_in_report, f"[assistant] {SAID}"),
    (lambda one: side_by_side(asked(replace(one, source="a")), ["a"], None).texts, [SAID]),
    (lambda one: shown_turn(one.messages[0])["text"], SAID),
    (lambda one: measured([asked(one)])[1][0][:3], ["[", "calls", "weather"]),
    # A call is neither right nor wrong, and in no language.
    (text_reward(ExactMatch, within=True), 0.0),
    (lambda one: Rules(languages=["de"]).fault(Row("f", 1, None, (asked(one),))), None),
]


@pytest.mark.parametrize(("read", "found"), READERS)
def test_whoever_reads_an_answer_reads_its_calls(read: Any, found: Any) -> None:
    assert read(calling()) == found


def test_rows_with_other_tools_or_calls_are_no_copies() -> None:
    """Neither for duplicates, nor for what a model has learned from."""
    other: Any = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
    one = asked(calling())
    rows = [one, asked(calling(tool_calls=[other])), replace(one, tools=())]
    units = near.units_of([Row("f", n, None, (row,)) for n, row in enumerate(rows)], "row")
    assert near.repeated(units, 0.8) == [] and len(near.repeated([*units, units[0]], 0.8)) == 1
    prompts = []
    for row in rows:
        prompts.append(Group((user("Hi"), *(row.responses[0].messages or ()), RESULT)))
    assert loose_key(prompts[0]) == loose_key(prompts[2]) != loose_key(prompts[1])


# A text, and whether 5 is its answer. Thoughts may find the answer, and drop it again.
ANSWERS = yaml.safe_load(r"""
"<think>Is it 4?</think>5": true
"<think>Is it 4?</think>\n\n5": true
"<think>It is 5.</think>I do not know.": false
"<think>It is 5. But": false
"<think>3 + 1 is 5": false
"5": true
"[THINK]Is it 4?[/THINK]5": true
"[THINK]It is 5. But": false
"<|begin_of_thought|>4?<|end_of_thought|>\n\n<|begin_of_solution|>5<|end_of_solution|>": true
"<|channel|>analysis<|message|>4?<|end|><|start|>assistant<|channel|>final<|message|>5<|return|>": true
"<|channel|>analysis<|message|>5": false
"<|channel|>final<|message|>5": true
"<seed:think>5?</seed:think>4": false
"◁think▷5?◁/think▷4": false
"<scratchpad>5?</scratchpad>4": false
"<Thinking>4?<reflection>5</reflection> So 5": false
"<thinking>4?<reflection>5</reflection></thinking>5": true
I think the answer is 5: true
"5\n<reflection>ok</reflection>": true
"<think>4?</think>5\n\n[THINK]Right?[/THINK]": true
"I can not tell it from here\n<reflection>5?</reflection>": false
"4\n<reflection>5?": false
"<answer>5</answer>\n<reasoning>2 + 3</reasoning>": true
"<think>Not in <think>? 4</think>5": true
"<think>4?</reflection>5": false
"x</think>\n<think>5": false
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
            assert judge.score([asked]) == [float(right)], text


def test_a_refusal_that_is_only_thought_of_is_none() -> None:
    texts = (
        "<think>I cannot help with that?</think>Mix the flour.",
        "<think>Is it safe?</think>I cannot help with that.",
    )
    found = Refusal(Refusal.Options()).score([Group((), tuple(map(Response, texts)))])
    assert found == [0.0, 1.0]


def test_an_answer_without_thoughts_is_unchanged() -> None:
    assert answer_of(Response(" 5\n")) == " 5\n"
    assert answer_of(Response("<think>4?</think>\n5\n")) == "5"
    assert answer_of(Response("Put <think> and </think> around it.")) == "Put  around it."
