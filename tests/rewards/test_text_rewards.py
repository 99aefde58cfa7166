"""Rewards that read an answer's text: their sign, and answers that are empty, cut off, or no text
at all.
"""

from __future__ import annotations

import importlib.util
import json
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from alignkit import DataError, Group, Response, Reward, RunFailed
from alignkit.testing import check_reward
from alignkit_plugins.formats.text_metrics import repetition
from alignkit_plugins.rewards import text as text_rewards
from alignkit_plugins.rewards.form import Form, content_of_last, is_json
from alignkit_plugins.rewards.text import ExactMatch, Language, Regex, Repetition

ASK = ({"role": "user", "content": "What is the capital of France?"},)
# A turn that only calls a tool
CALL: Any = {"role": "assistant", "content": None, "tool_calls": []}


def scores(
    reward: type[Reward], *answers: str | Response, meta: Any = None, **options: Any
) -> list[float | None]:
    responses = tuple(each if isinstance(each, Response) else Response(each) for each in answers)
    return list(
        reward(reward.Options(**options)).score([Group(ASK, responses, meta=meta or {})])[""]
    )


def talk(*texts: str | None) -> Response:
    """A conversation with these turns of the assistant, and a tool's after each but the last."""
    turns: list[Any] = []
    for text in texts:
        turns += [{"role": "assistant", "content": text}, {"role": "tool", "content": "Paris"}]
    return Response(messages=tuple(turns[:-1]))


@pytest.mark.parametrize(
    ("reward", "options"),
    [
        (Regex, {"pattern": "e"}),
        (Form, {"tags": ["a"]}),
        (Repetition, {}),
        (Repetition, {"unit": "characters", "n": 2}),
    ],
)
def test_they_conform(reward: type[Reward], options: dict[str, Any]) -> None:
    check_reward(reward, options)


# --- exact match


def test_an_exact_match_pays_one() -> None:
    right = ["Paris", "paris", " PARIS.", "Paris\n", "Paris!"]
    assert scores(ExactMatch, *right, meta={"answer": "Paris"}) == [1.0] * len(right)
    wrong = ["", ".", "Paris, France", "Par", "Rome"]
    assert scores(ExactMatch, *wrong, meta={"answer": "Paris"}) == [0.0] * len(wrong)


def test_composed_letters_are_the_same() -> None:
    assert scores(ExactMatch, "Ume\u0061\u030a", meta={"answer": "Ume\u00e5"}) == [1.0]


def test_one_of_several_answers_and_numbers_are_right() -> None:
    assert scores(ExactMatch, "7", "seven", "8", meta={"n": [7, "seven"]}, column="n") == [
        1.0,
        1.0,
        0.0,
    ]
    assert scores(ExactMatch, "1.5", "15", "-1", meta={"answer": 1.5}) == [1.0, 0.0, 0.0]


def test_numbers_are_compared_by_their_value() -> None:
    for known in ("3", 3, 3.0, "3.00", "+3", ["x", 3.0]):
        assert scores(
            ExactMatch, "3", "3.0", "3.", " 03 ", "3e0", "3.1", "three", meta={"answer": known}
        ) == [
            *[1.0] * 5,
            *[0.0] * 2,
        ]
    assert scores(ExactMatch, "-0.5", "-.5", "0.5", meta={"answer": -0.5}) == [1.0, 1.0, 0.0]
    large = "1" * 50
    assert scores(ExactMatch, large + "2", large + "3", meta={"answer": large + "2"}) == [1.0, 0.0]
    assert scores(ExactMatch, "1e999999999", "9" * 9999, meta={"answer": "1e999999999"}) == [
        1.0,
        0.0,
    ]


def test_the_last_match_is_the_answer() -> None:
    asked = {"meta": {"answer": "4"}, "extract": r"answer is (\w+)"}
    assert scores(
        ExactMatch, "The answer is 5, no, the answer is 4.", "4", "answer is", **asked
    ) == [1.0, 0.0, 0.0]
    assert scores(ExactMatch, "3 then 4", "4 then 3", meta={"answer": 4}, extract=r"\d") == [
        1.0,
        0.0,
    ]
    assert scores(ExactMatch, "x", "y", meta={"answer": "x"}, extract="(x)|y") == [1.0, 0.0]


def test_a_pattern_may_describe_the_thoughts_but_extracts_what_follows_them() -> None:
    asked: Any = {
        "meta": {"answer": "5"},
        "extract": r"(?s)^<think>.*?</think>\s*<answer>(.*?)</answer>$",
    }
    assert scores(ExactMatch, "<think>\n4?\n</think>\n<answer>5</answer>", **asked) == [1.0]
    assert scores(
        ExactMatch, "<think>5</think><answer>4</answer>", "<answer>5</answer>", **asked
    ) == [0.0, 0.0]
    thought = ["<think>It is 5.</think> I do not know.", "<think>It is 5."]
    assert scores(ExactMatch, *thought, meta={"answer": "5"}, extract=r"is (\d)") == [0.0, 0.0]


def test_a_known_answer_may_be_a_part_of_the_answer_in_whole_words() -> None:
    asked: Any = {"meta": {"answer": ["Paris", "H2O", "7"]}, "within": True}
    right = ["It is Paris.", "paris, of course", "Water is H2O!", "7 days", "(7)", "There are 7."]
    assert scores(ExactMatch, *right, **asked) == [1.0] * len(right)
    wrong = ["Parisian", "It is Rome.", "", "17", "7.5", "2.7", "7,000", "70"]
    assert scores(ExactMatch, *wrong, **asked) == [0.0] * len(wrong)
    numbers: Any = {"meta": {"answer": [3.0, "1000", "Oslo."]}, "within": True}
    assert (
        scores(ExactMatch, "It is 3.", "1,000 km", "...Oslo", "Answer:Oslo, yes", **numbers)
        == [1.0] * 4
    )
    assert (
        scores(ExactMatch, "It is -3.", "x = 1/3", "3/4", "13", "1,000,000", **numbers) == [0.0] * 5
    )
    assert scores(
        ExactMatch, "Paris; so: Rome", meta={"answer": "Paris"}, within=True, extract="so: (.*)"
    ) == [0.0]


def test_the_last_turn_of_the_assistant_is_the_answer() -> None:
    asked = {"meta": {"answer": "Paris"}}
    assert scores(ExactMatch, talk("Let me look.", "Paris"), talk("Paris", "Rome"), **asked) == [
        1.0,
        0.0,
    ]
    asks: Any = ({"role": "assistant", "content": "Paris"}, {"role": "user", "content": "Really?"})
    assert scores(ExactMatch, Response(messages=asks), **asked) == [1.0]
    assert (
        scores(ExactMatch, talk(None), Response(messages=(CALL,)), Response(messages=()), **asked)
        == [0.0] * 3
    )


@pytest.mark.parametrize("value", [None, [], True, {"a": 1}, ["x", None], "", ["x", " "]])
def test_a_prompt_without_an_answer_is_named(value: Any) -> None:
    group = Group(ASK, (Response("Paris"),), meta={"answer": value, "id": 3})
    with pytest.raises(
        DataError, match=r"exact_match: the prompt 'What is the capital of France\?'"
    ):
        ExactMatch(ExactMatch.Options()).check_prompts([group])


# --- patterns


def test_a_pattern_pays_its_scale() -> None:
    assert scores(Regex, "I am sorry", "fine", "", pattern="sorry") == [1.0, 0.0, 0.0]
    assert scores(Regex, "I am sorry", "fine", talk(None), pattern="sorry", scale=-2) == [
        -2.0,
        0.0,
        0.0,
    ]
    assert scores(Regex, "ab", "abc", pattern="^a.$") == [1.0, 0.0]
    assert scores(Regex, "SORRY", pattern="(?i)sorry") == [1.0]


@pytest.mark.parametrize("options", [{"pattern": "("}, {"pattern": ""}])
def test_a_pattern_that_cannot_be_read_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Regex.Options(**options)
    with pytest.raises(ValidationError, match="no regular expression"):
        ExactMatch.Options(extract="[")


def test_a_pattern_that_takes_for_ever_gives_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_rewards, "SECONDS", 0.1)
    busy = "(a|aa)+$"
    assert scores(Regex, "a" * 60 + "b", "aaa", pattern=busy) == [None, 1.0]
    assert scores(ExactMatch, "a" * 60 + "b", meta={"answer": "x"}, extract=busy) == [None]


# --- form


@pytest.mark.parametrize(
    "rules",
    [
        {"properties": {"name": {"pattern": "^(a|aa)+$"}}},
        {"patternProperties": {"^(a|aa)+b$": False}},
        {"patternProperties": {"^(a|aa)+$": {}}, "additionalProperties": False},
        {"properties": {"list": {"items": {"pattern": "^(?=(a|aa)+$)"}}}},
    ],
)
def test_a_pattern_of_a_schema_takes_no_time(rules: dict[str, Any]) -> None:
    pytest.importorskip("jsonschema_rs")
    busy = "a" * 60 + "b"
    answer = json.dumps({"name": busy, busy: 1, "list": [busy] * 9})
    assert scores(Form, answer, json_schema=rules) == [0.0]


@pytest.mark.parametrize(
    "rules", [{"properties": {"a": {"pattern": "("}}}, {"patternProperties": {"(": {}}}]
)
def test_patterns_that_cannot_be_searched_are_found_early(
    rules: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("jsonschema_rs")
    with pytest.raises(RunFailed, match=r'"\(" is not a "regex"'):
        Form(Form.Options(json_schema=rules)).check(tmp_path)
    Form(Form.Options(json_schema={"const": {"pattern": "("}})).check(tmp_path)


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        ("<think>a</think><answer>b</answer>", "b"),
        (" <think>\na\n</think>\n\n<answer> b </answer>\n", " b "),
        ("<think>a</think> so <answer>b</answer>", None),
        ("Well. <think>a</think><answer>b</answer>", None),
        ("<think>a</think><answer>b</answer> Bye", None),
        ("<answer>b</answer><think>a</think>", None),
        ("<think>a</think><answer>b</answer><answer>c</answer>", None),
        ("<think>a<think>b</think><answer>c</answer>", None),
        ("<think>a<answer>b</answer></think><answer>c</answer>", None),
        ("<think> </think><answer>b</answer>", None),
        ("<think>a</think><answer></answer>", None),
        ("<think>a</think><answer>b", None),  # cut off
        ("think>a</think><answer>b</answer>", None),
        ("", None),
    ],
)
def test_tags_make_up_the_answer(answer: str, content: str | None) -> None:
    assert content_of_last(answer, ["think", "answer"]) == content
    assert scores(Form, answer, tags=["think", "answer"]) == [float(content is not None)]


SCHEMA = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}
JSON = [
    ('{"city": "Paris"}', True),
    ('```JSON\n{"city": "Paris"}\n```', True),
    ('~~~json\n{"city": "Paris"}\n~~~', True),
    ('\ufeff{"city": "Paris"}', True),
    ('```json\n{"city": "Paris"}\n~~~', False),
    ('```json\n{"city": "Paris"}\n```', True),
    ('```\n{"city": "Paris"}\n```', True),
    ('{"city": 3}', False),
    ("{}", False),
    ('{"city": "Paris"', False),  # cut off
    ('Here: {"city": "Paris"}', False),
    ("", False),
    ("null", False),
    ("[" * 100_000, False),
]


@pytest.mark.silent_bug(
    "rewards: answers",
    "JSON in a block of code of tildes, in ```JSON, or after a byte order mark counts as no JSON.",
    "Blocks are those of Markdown, and the mark is no part of a text.",
)
@pytest.mark.parametrize(("answer", "right"), JSON)
def test_json_fulfills_its_schema(answer: str, right: bool) -> None:
    pytest.importorskip("jsonschema_rs")
    assert scores(Form, answer, json_schema=SCHEMA) == [float(right)]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("[1]", True),
        ("null", True),
        ("NaN", False),
        ("Infinity", False),
        ("'a'", False),
        ("", False),
    ],
)
def test_any_json_needs_no_package(
    text: str, right: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    Form(Form.Options(json_schema={})).check(tmp_path)
    assert is_json(text, {}) is right


def test_a_schema_is_checked_and_asks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jsonschema_rs")
    with pytest.raises(RunFailed, match="json_schema is no JSON schema"):
        Form(Form.Options(json_schema={"type": 3})).check(tmp_path)
    asked: list[Any] = []
    monkeypatch.setattr(
        socket, "create_connection", lambda *address, **options: asked.append(address)
    )
    elsewhere = {"$ref": "http://127.0.0.1:9/schema.json"}
    with pytest.raises(
        RunFailed, match=r"refers to what is not part of it.*http://127\.0\.0\.1:9/schema\.json"
    ):
        Form(Form.Options(json_schema=elsewhere)).check(tmp_path)
    assert not asked
    inside = {"$ref": "#/$defs/city", "$defs": {"city": {"type": "string"}}}
    assert scores(Form, '"Paris"', "3", json_schema=inside) == [1.0, 0.0]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        RunFailed, match=r"needs the package jsonschema_rs\nhelp: .* install 'alignkit\[json\]'"
    ):
        Form(Form.Options(json_schema=SCHEMA)).check(tmp_path)


def test_values_of_no_end_are_read() -> None:
    pytest.importorskip("jsonschema_rs")
    assert not is_json("1e400", {"type": "number"})
    assert is_json("1" + "0" * 400, {"multipleOf": 0.5})
    assert not is_json('"\\ud800"', {"pattern": "a"})


def test_the_last_tag_holds_the_json() -> None:
    answers = [
        "<think>a</think><answer>[1]</answer>",
        "<think>[1]</think><answer>a</answer>",
        "[1]",
    ]
    assert scores(Form, *answers, tags=["think", "answer"], json_schema={}) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "options",
    [{}, {"tags": ["<a>"]}, {"tags": ["a", "a"]}, {"tags": [""]}],
)
def test_a_form_must_ask_for_something_known(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Form.Options(**options)


# --- repetition


def test_repetition_costs() -> None:
    found = scores(Repetition, "a b c d e", "a b c a b c", "a a a a a a a a", "", "a b", talk(None))
    assert found == pytest.approx([0.0, -1 / 4, -5 / 6, 0.0, 0.0, 0.0])
    assert scores(Repetition, "a b c a b c", scale=2) == [0.5]


def test_repetition_ignores_case_and_can_count_characters() -> None:
    assert scores(Repetition, "Go on go ON go on", n=2) == pytest.approx([-3 / 5])
    assert scores(Repetition, "\u597d\u7684\u597d\u7684\u597d\u7684", n=2) == [0.0]  # one word
    assert scores(
        Repetition, "\u597d\u7684\u597d\u7684\u597d\u7684", n=2, unit="characters"
    ) == pytest.approx([-3 / 5])


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 4))
def test_the_repeated_share_counts_all_but_the_first_of_each(units: list[str], n: int) -> None:
    grams = Counter(tuple(units[i : i + n]) for i in range(len(units) - n + 1))
    expected = sum(count - 1 for count in grams.values()) / max(1, grams.total())
    assert repetition(units, n) == pytest.approx(expected)


# --- language

GERMAN = "Die Hauptstadt von Frankreich ist Paris, das wei\u00df doch jedes Kind."
ENGLISH = "The capital of France is Paris, which every child knows."


def test_the_right_language_pays() -> None:
    pytest.importorskip("py3langid")
    assert scores(Language, GERMAN, ENGLISH, "", "42 + 1", talk(None), language="de") == [
        1.0,
        0.0,
        0.0,
        0.0,
        0.0,
    ]
    assert scores(Language, GERMAN, ENGLISH) == [0.0, 1.0]  # as the prompt
    assert scores(Language, GERMAN, GERMAN[:20], ENGLISH, meta={"lang": "de"}, column="lang") == [
        1.0,
        1.0,
        0.0,
    ]


def test_an_answer_without_letters_is_in_no_language() -> None:
    langid = pytest.importorskip("py3langid")
    for text in ("", "42 + 1", "?!"):
        assert scores(Language, text, language=langid.classify(text)[0]) == [0.0]


def test_languages_are_known(tmp_path: Path) -> None:
    pytest.importorskip("py3langid")
    with pytest.raises(RunFailed, match="does not know xx; it knows"):
        Language(Language.Options(language="xx")).check(tmp_path)
    reward = Language(Language.Options(column="lang"))
    reward.check(tmp_path)
    reward.check_prompts([Group(ASK, meta={"lang": "de"})])
    for meta in ({}, {"lang": None}, {"lang": "German"}, {"lang": 3}):
        with pytest.raises(DataError, match="'lang'"):
            reward.check_prompts([Group(ASK, meta=meta)])
    with pytest.raises(ValidationError, match="set 'language' or 'column'"):
        Language.Options(language="de", column="lang")


def test_languages_need_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        RunFailed, match=r"needs the package py3langid\nhelp: .* install 'alignkit\[language\]'"
    ):
        Language(Language.Options(language="de")).check(tmp_path)


def test_options_are_plain_data() -> None:
    """They are part of a stage's hash."""
    options = Form.Options(tags=["a"], json_schema=SCHEMA)
    assert json.loads(options.model_dump_json())["json_schema"] == SCHEMA
    assert options.packages == ("jsonschema-rs",)
