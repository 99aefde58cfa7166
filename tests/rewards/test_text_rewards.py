"""Rewards that read an answer's text: their sign, and answers that are empty, cut off, or no text
at all.
"""

from __future__ import annotations

import importlib.util
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from alignkit import DataError, Group, Response, Reward, RunFailed
from alignkit_plugins.rewards import exact_match, regex
from alignkit_plugins.rewards.exact_match import ExactMatch
from alignkit_plugins.rewards.format import Form, content_of_last, is_json
from alignkit_plugins.rewards.language import Language
from alignkit_plugins.rewards.math_verify import MathVerify
from alignkit_plugins.rewards.regex import Regex
from alignkit_plugins.rewards.repetition import Repetition
from tests.rows import assistant, user

ASK = (user("What is the capital of France?"),)


def scores(
    reward: type[Reward], *answers: str | Response, meta: Any = None, **options: Any
) -> list[float | None]:
    responses = tuple(each if isinstance(each, Response) else Response(each) for each in answers)
    group = Group(ASK, responses, meta=meta or {})
    return list(reward(reward.Options(**options)).score([group]))


def talk(*texts: str | None) -> Response:
    """A conversation with these turns of the assistant, and a tool's after each but the last."""
    turns: list[Any] = []
    for text in texts:
        turns += [{"role": "assistant", "content": text}, {"role": "tool", "content": "Paris"}]
    return Response(messages=tuple(turns[:-1]))


# Right and wrong answers


MATCHES = yaml.safe_load(r"""
- known: Paris
  right: [Paris, paris, " PARIS.", "Paris\n", Paris!]
  wrong: ["", ., "Paris, France", Par, Rome]
- {known: "Ume\u00e5", right: ["Ume\u0061\u030a"]}
- {known: [7, seven], right: ["7", seven], wrong: ["8"]}
- {known: "3", right: ["3", "3.0", "3.", " 03 ", "3e0"], wrong: ["3.1", three, "-3"]}
- {known: 3, right: ["3", "3.0", "3.", " 03 ", "3e0"], wrong: ["3.1", three, "-3"]}
- {known: "+3", right: ["3", "3.0", "3.", " 03 ", "3e0"], wrong: ["3.1", three, "-3"]}
- {known: [x, 3.0], right: ["3", "3.0", "3.", " 03 ", "3e0"], wrong: ["3.1", three, "-3"]}
- {known: 1.5, right: ["1.5"], wrong: ["15", "-1"]}
- {known: -0.5, right: ["-0.5", "-.5"], wrong: ["0.5"]}
- known: "11111111111111111111111111111111111111112"
  right: ["11111111111111111111111111111111111111112"]
  wrong: ["11111111111111111111111111111111111111113"]
- {known: "1e999999999", right: ["1e999999999"], wrong: ["9999999999999999"]}
- known: "4"
  extract: answer is (\w+)
  right: ["The answer is 5, no, the answer is 4."]
  wrong: ["4", answer is]
- {known: 4, extract: \d, right: [3 then 4], wrong: [4 then 3]}
- {known: [x, "None"], extract: (x)|y, right: [x], wrong: [y]}
# A pattern may describe the thoughts, but extracts what follows them.
- known: "5"
  extract: (?s)^<think>.*?</think>\s*<answer>(.*?)</answer>$
  right: ["<think>\n4?\n</think>\n<answer>5</answer>"]
  wrong: [<think>5</think><answer>4</answer>, <answer>5</answer>]
- {known: "5", extract: is (\d), wrong: [<think>It is 5.</think> I do not know., <think>It is 5.]}
# A part of the answer, in whole words.
- known: [Paris, H2O, "7"]
  within: true
  right: [It is Paris., "paris, of course", Water is H2O!, 7 days, (7), There are 7.]
  wrong: [Parisian, It is Rome., "", "17", "7.5", "2.7", "7,000", "70"]
- known: [3.0, "1000", Oslo.]
  within: true
  right: [It is 3., "1,000 km", ...Oslo, "Answer:Oslo, yes"]
  wrong: [It is -3., x = 1/3, 3/4, "13", "1,000,000"]
- {known: Paris, within: true, extract: "so: (.*)", wrong: ["Paris; so: Rome"]}
""")


@pytest.mark.parametrize("row", MATCHES, ids=lambda row: str(row["known"])[:20])
def test_an_exact_match_pays_one(row: dict[str, Any]) -> None:
    right, wrong = row.get("right", []), row.get("wrong", [])
    options = {name: row[name] for name in ("extract", "within") if name in row}
    meta = {"n": row["known"]}
    found = scores(ExactMatch, *right, *wrong, meta=meta, column="n", **options)
    assert found == [1.0] * len(right) + [0.0] * len(wrong)


def test_the_last_turn_of_the_assistant_is_the_answer() -> None:
    asked_again = Response(messages=(assistant("Paris"), user("Really?")))
    right = [talk("Let me look.", "Paris"), asked_again]
    wrong = [talk("Paris", "Rome"), talk(None), Response(messages=())]
    assert scores(ExactMatch, *right, *wrong, meta={"answer": "Paris"}) == [1.0] * 2 + [0.0] * 3


@pytest.mark.parametrize(
    "value", yaml.safe_load("[null, [], true, {a: 1}, [x, null], '', [x, ' ']]")
)
def test_a_prompt_without_an_answer_is_named(value: Any) -> None:
    group = Group(ASK, (Response("Paris"),), meta={"answer": value, "id": 3})
    with pytest.raises(DataError, match=r"exact_match: the prompt 'What is the capital of France"):
        ExactMatch(ExactMatch.Options()).check_prompts([group])


# Patterns, a scale, and the scores of answers.
PATTERNS = yaml.safe_load("""
- [sorry, 1, {I am sorry: 1, "": 0, SORRY: 0}]
- [sorry, -2, {I am sorry: -2, "": 0}]
- [^a.$, 1, {ab: 1, abc: 0}]
- ["(?i)sorry", 1, {SORRY: 1}]
- [a, 1, {<think>a</think>b: 0, b: 0}]
- [</think>b$, 1, {<think>a</think>b: 1}]
""")


@pytest.mark.parametrize(("pattern", "scale", "found"), PATTERNS)
def test_a_pattern_pays_its_scale(pattern: str, scale: float, found: dict[str, float]) -> None:
    told = scores(Regex, *found, talk(None), pattern=pattern, scale=scale)
    assert told == [*found.values(), 0.0]


def test_a_pattern_that_takes_for_ever_gives_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (exact_match, regex):
        monkeypatch.setattr(module, "SECONDS", 0.1)
    busy = "(a|aa)+$"
    assert scores(Regex, "a" * 60 + "b", "aaa", pattern=busy) == [None, 1.0]
    assert scores(ExactMatch, "a" * 60 + "b", meta={"answer": "x"}, extract=busy) == [None]


REWARDS = {"regex": Regex, "exact": ExactMatch, "form": Form, "language": Language}
UNKNOWN = yaml.safe_load("""
- [regex, {pattern: (}]
- [regex, {pattern: ""}]
- [exact, {extract: "["}]
- [form, {}]
- [form, {tags: [<a>]}]
- [form, {tags: [a, a]}]
- [language, {language: de, column: lang}]
""")


@pytest.mark.parametrize(("reward", "options"), UNKNOWN)
def test_options_that_ask_for_nothing_known_are_refused(
    reward: str, options: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError):
        REWARDS[reward].Options(**options)


# Form


NOT_TAGGED = """
<think>a</think> so <answer>b</answer>
Well. <think>a</think><answer>b</answer>
<think>a</think><answer>b</answer> Bye
<answer>b</answer><think>a</think>
<think>a</think><answer>b</answer><answer>c</answer>
<think>a<think>b</think><answer>c</answer>
<think>a<answer>b</answer></think><answer>c</answer>
<think> </think><answer>b</answer>
<think>a</answer></think><answer>b</answer>
<think>a</think><answer></answer>
<think>a</think><answer>b
think>a</think><answer>b</answer>
"""


def test_tags_make_up_the_answer() -> None:
    tags = ["think", "answer"]
    spaced = " <think>\na\n</think>\n\n<answer> b </answer>\n"
    tagged, others = ["<think>a</think><answer>b</answer>", spaced], NOT_TAGGED.splitlines()
    assert [content_of_last(text, tags) for text in tagged] == ["b", " b "]
    assert [text for text in others if content_of_last(text, tags) is not None] == []
    assert scores(Form, *tagged, *others, tags=tags) == [1.0] * 2 + [0.0] * len(others)
    assert scores(Form, tagged[0], tags=["answer"]) == [1.0]


def test_the_last_tag_holds_the_json() -> None:
    tagged = "<think>{}</think><answer>{}</answer>"
    answers = [tagged.format("a", "[1]"), tagged.format("[1]", "a"), "[1]"]
    assert scores(Form, *answers, tags=["think", "answer"], json_schema={}) == [1.0, 0.0, 0.0]


PARIS = '{"city": "Paris"}'
SCHEMA = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}
# What stands for PARIS in them.
FULFILLED = yaml.safe_load(r"""
[X, "```JSON\nX\n```", "~~~json\nX\n~~~", "\uFEFFX", "```json\nX\n```", "```\nX\n```"]
""")
BROKEN = yaml.safe_load(r"""
["```json\nX\n~~~", '{"city": 3}', '{}', '{"city": "Paris"', "Here: X", '', 'null', "```json\nX\n```\n```json\nX\n```"]
""")


@pytest.mark.silent_bug(
    "rewards: answers",
    "JSON in a block of code of tildes, in ```JSON, or after a byte order mark counts as no JSON.",
    "Blocks are those of Markdown, and the mark is no part of a text.",
)
def test_json_fulfills_its_schema() -> None:
    pytest.importorskip("jsonschema_rs")
    for texts, score in ((FULFILLED, 1.0), ([*BROKEN, "[" * 100_000], 0.0)):
        for text in texts:
            found = scores(Form, text.replace("X", PARIS), json_schema=SCHEMA)
            assert found == [score], text[:40]
    # Values of no end are read.
    assert not is_json("1e400", {"type": "number"})
    assert is_json("1" + "0" * 400, {"multipleOf": 0.5})
    assert not is_json('"\\ud800"', {"pattern": "a"})
    assert not is_json('{"city": "Oslo", "city": "Rome"}', {})


def test_any_json_needs_no_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    Form(Form.Options(json_schema={})).check(tmp_path)
    assert is_json("[1]", {}) and is_json("null", {})
    assert not any(is_json(text, {}) for text in ("NaN", "Infinity", "'a'", ""))


RULES = yaml.safe_load("""
- {properties: {name: {pattern: ^(a|aa)+$}}}
- {patternProperties: {^(a|aa)+b$: false}}
- {patternProperties: {^(a|aa)+$: {}}, additionalProperties: false}
- {properties: {list: {items: {pattern: "^(?=(a|aa)+$)"}}}}
""")


@pytest.mark.parametrize("rules", RULES)
def test_a_pattern_of_a_schema_takes_no_time(rules: dict[str, Any]) -> None:
    pytest.importorskip("jsonschema_rs")
    busy = "a" * 60 + "b"
    answer = json.dumps({"name": busy, busy: 1, "list": [busy] * 9})
    assert scores(Form, answer, json_schema=rules) == [0.0]


SCHEMAS = yaml.safe_load(r"""
- [{properties: {a: {pattern: (}}}, '"\(" is not a "regex"']
- [{type: 3}, json_schema is no JSON schema]
- [{$ref: "http://127.0.0.1:9/schema.json"}, 'refers to what is not part of it.*127\.0\.0\.1:9/schema\.json']
""")


@pytest.mark.parametrize(("schema", "message"), SCHEMAS)
def test_a_schema_is_checked_and_asks_nobody(
    schema: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jsonschema_rs")
    asked: list[Any] = []
    monkeypatch.setattr(socket, "create_connection", lambda *to, **options: asked.append(to))
    with pytest.raises(RunFailed, match=message):
        Form(Form.Options(json_schema=schema)).check(tmp_path)
    assert not asked


def test_a_schema_may_refer_to_its_own_parts(tmp_path: Path) -> None:
    pytest.importorskip("jsonschema_rs")
    inside = {"$ref": "#/$defs/city", "$defs": {"city": {"type": "string"}}}
    assert scores(Form, '"Paris"', "3", json_schema=inside) == [1.0, 0.0]
    Form(Form.Options(json_schema={"const": {"pattern": "("}})).check(tmp_path)
    assert scores(Form, '"a"', json_schema={"format": "email"}) == [1.0]


# Repetition


REPEATED = yaml.safe_load(r"""
- [a b c d e, {}, 0]
- ["", {}, 0]
- [a b, {}, 0]
- [a b c a b c, {}, -0.25]
- [a b c a b c, {scale: 2}, 0.5]
- [Go on go ON go on, {n: 2}, -0.6]
- [a b a b, {unit: characters}, -0.2]
- ["\u597d\u7684\u597d\u7684\u597d\u7684", {n: 2}, 0]    # one word
- ["\u597d\u7684\u597d\u7684\u597d\u7684", {n: 2, unit: characters}, -0.6]
""")


@pytest.mark.parametrize(("answer", "options", "score"), REPEATED)
def test_repetition_costs(answer: str, options: dict[str, Any], score: float) -> None:
    found = scores(Repetition, answer, talk(None), **options)
    assert found == pytest.approx([score, 0.0])


# Language

GERMAN = "Die Hauptstadt von Frankreich ist Paris, das wei\u00df doch jedes Kind."
ENGLISH = "The capital of France is Paris, which every child knows."


def test_the_right_language_pays() -> None:
    pytest.importorskip("py3langid")
    unclear = "42 + 1", "Paris.", "Yes.", "x = 3"
    found = scores(Language, GERMAN, ENGLISH, "", *unclear, language="de")
    assert found == [1.0, 0.0, 0.0, *[None] * 4]
    assert Language(Language.Options()).score([Group((user("Hi"),), (Response(ENGLISH),))]) == [
        None
    ]
    assert scores(Language, GERMAN, ENGLISH) == [0.0, 1.0]  # as the prompt
    last = Group((user(GERMAN), user(ENGLISH)), (Response(ENGLISH),))
    assert Language(Language.Options()).score([last]) == [1.0]
    of_column = scores(Language, GERMAN[:30], ENGLISH, meta={"lang": "de"}, column="lang")
    assert of_column == [1.0, 0.0]


def test_languages_are_known(tmp_path: Path) -> None:
    pytest.importorskip("py3langid")
    with pytest.raises(RunFailed, match="does not know xx; it knows"):
        Language(Language.Options(language="xx")).check(tmp_path)
    reward = Language(Language.Options(column="lang"))
    reward.check(tmp_path)
    reward.check_prompts([Group(ASK, meta={"lang": "de"})])
    for meta in ({}, {"lang": "German"}):
        with pytest.raises(DataError, match="'lang'"):
            reward.check_prompts([Group(ASK, meta=meta)])


MISSING: list[tuple[Any, dict[str, Any], str]] = [
    (Form, {"json_schema": SCHEMA}, r"jsonschema_rs\nhelp: .* install 'alignkit\[json\]'"),
    (Language, {}, r"py3langid\nhelp: .* install 'alignkit\[language\]'"),
    (MathVerify, {}, r"math_verify\nhelp: .* install 'alignkit\[math\]'"),
]


@pytest.mark.parametrize(("reward", "options", "words"), MISSING)
def test_a_package_that_is_missing_is_named_with_its_extra(
    reward: Any, options: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RunFailed, match=f"needs the package {words}"):
        reward(reward.Options(**options)).check(tmp_path)


def test_a_schema_is_part_of_a_stages_hash_and_names_its_package() -> None:
    options = Form.Options(tags=["a"], json_schema=SCHEMA)
    assert json.loads(options.model_dump_json())["json_schema"] == SCHEMA
    assert options.packages == ("jsonschema-rs",)
