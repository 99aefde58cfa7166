"""Templates: what a field is filled with, what a row becomes, and that mistakes name the row and
the place.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignkit import BadRow
from alignkit.cli import main
from alignkit.errors import DataError, RecipeError
from alignkit.recipe.load import load_recipe
from alignkit.recipe.sources import DataSpec, Loaded
from alignkit.runs.fingerprint import RunData
from alignkit_plugins.formats.template import Template, Text, written
from alignkit_plugins.report.data_card import describe
from tests.formats.reading import check, read, shown
from tests.rows import Said, cells, json_rows, write_recipe, write_rows

ROW = json.loads("""
{"passage": "Rain is wet.", "n": 3, "x": 1.5, "yes": true, "none": null, "empty": "",
 "words": ["one", "two", 3],
 "nested": {"deep": [{"text": "a", "more": {"of": "b"}}, {"text": "c", "more": {"of": "d"}}]},
 "choices": ["Fire", "Rain", "Snow"], "labeled": {"text": ["Fire", "Rain"], "label": ["1", "b"]},
 "chat": [{"by": "Eve", "text": "q"}, {"by": "gpt ", "text": "a", "train": false}],
 "zero": 0, "methods": {"items": 3, "values": ["v"]}, "two": "2", "b": "b", "q": "Q"}
""")


FILLED_TEXTS = json_rows(r"""
["{{ passage }} {{ n }} {{ x }} {{ yes }}", "Rain is wet. 3 1.5 true"]
["[{{ empty }}|{{ none | default('', true) }}|{{ missing | default('') }}]", "[||]"]
["{{ words[0] }} {{ words[-1] }} {{ words | join(', ') }}", "one 3 one, two, 3"]
["{{ nested.deep[1].more.of }} {{ nested.deep | map(attribute='text') | join }}", "d ac"]
["{{ choices | letters }}", "A. Fire\nB. Rain\nC. Snow"]
["{{ zero | letter(choices) }}{{ b | letter(choices) }}{{ two | letter(choices) }}", "ABC"]
["{{ b | letter(labeled.text, labeled.label) }}", "B"]
["{{ {'3': 'three', '4': 'four'}[n | string] }}", "three"]
["\\boxed{ {{ n }} }", "\\boxed{ 3 }"]
[" {{ passage }} ", "Rain is wet."]
["{{ methods.items }} {{ methods.values[0] }}", "3 v"]
""")


@pytest.mark.parametrize(("text", "filled"), FILLED_TEXTS)
def test_a_text_is_filled_with_what_the_row_holds(text: str, filled: str) -> None:
    one = Text(text)
    assert written(one.value(ROW)) == filled and Text(text).fill is one.fill  # compiled once


def test_a_single_expression_keeps_its_type() -> None:
    turns = [{"role": "user", "content": "q"}, {"train": False, "role": "gpt", "content": "a"}]
    chat = """{{ chat | turns("by", "text", user=["Al", "eve"]) }}"""
    values = {
        chat: turns,
        "{{ words }}": ["one", "two", 3],
        "{{ n }}": 3,
        "{{ none }}": None,
        "{{ n }}.": "3.",
    }
    assert {text: Text(text).value(ROW) for text in values} == values


NOT_HELD = json_rows("""
["{{ pasage }}", "did you mean 'passage'?"]
["{{ nested.depp }} is", "no attribute 'depp'"]
["{{ none }} is", "null is no text"]
["{{ words }} are", "a list is no text"]
["{{ nested }} is", "an object is no text"]
["{{ words[3] }}", "no element 3"]
["{{ [passage, nested.depp] }}", "no attribute 'depp'"]
["{{ passage.title }}", "is no text"]
["{{ passage.title }} is", "is no text"]
["{{ passage | letters }}", "expected a list"]
["{{ n | letter(choices) }}", "3 is none of the 3"]
["{{ q | letter(choices) }}", "'Q' is none of the 3"]
["{{ yes | letter(choices) }}", "True is none of the 3"]
["{{ none | letter(choices) }}", "None is none of the 3"]
["{{ x | letter(choices) }}", "1.5 is none of the 3"]
["{{ zero | letter(labeled.text, labeled.label) }}", "0 is none of the 2"]
["{{ {'1': 'one'}[n | string] }}", "no attribute '3'"]
["{{ words | dialogue(choices[:2]) }}", "zip() argument 2 is shorter"]
["{{ chat | turns('by', 'says') }}", "turn 0 has no says"]
["{{ chat | turns('by', 'text', user='Eve') }}", "turns: user: expected a list, not text"]
["{{ ''.__class__ }}", "unsafe"]
["{{ q.__class__.__mro__ }}", ""]
["{{ words.append('x') }}", ""]
""")


@pytest.mark.parametrize(("text", "reason"), NOT_HELD)
def test_what_a_row_does_not_hold_is_named(text: str, reason: str) -> None:
    """An answer that is no choice is never taken for another one; nothing but data can be
    reached.
    """
    with pytest.raises(BadRow) as error:
        Text(text).value(ROW)
    assert reason in str(error.value)


@pytest.mark.parametrize("text", ["{{ a", "{{ a | leters }}", "{% if a %}"])
def test_a_text_that_is_not_valid_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="not valid Jinja"):
        Template.Options(prompt="{{ q }}", response=text)


def test_what_a_row_becomes() -> None:
    check(r"""
with {prompt: "{{ context }}\n\n{{ q }}", response: "{{ a }}", system: "Be {{ a }}.", answer: "{{ a }}"}
template () {"context": "Rain is wet.", "q": "What?", "a": "rain", "note": "by hand", "answer": "b"}
  s: Be rain. / u: Rain is wet.\n\nWhat? -> rain {"note": "by hand", "answer": "rain"}

with {prompt: "{{ q }}"}
template () {"q": "Q?", "answer": "rain", "note": "by hand"}
  u: Q? -> {"answer": "rain", "note": "by hand"}

template {"q": null}
  ! null is no text

template {"q": " "}
  ! empty

template {}
  ! 'q' is undefined

template 5
template [1]
template "text"
  ! must be an object

with {prompt: "{{ q }}", response: "{{ a }}", label: "{{ good == 'yes' }}"}
template () {"q": "Q?", "a": "A", "good": "no"}
  u: Q? -> A (label false)

with {prompt: "{{ q }}", response: "{{ a }}", scores: "{{ good }}"}
template () {"q": "Q?", "a": <u: Q? / a: A>, "good": "4"}
  u: Q? -> A (scores {"reward": 4.0})

template {"q": "Q?", "a": "A", "good": "no"}
  ! column 'scores' must be a number, not 'no'

with {prompt: "{{ q }}", response: "{{ a }}", label: "{{ good }}"}
template {"q": "Q?", "a": "A", "good": "no"}
  ! column 'label' must be true or false, not 'no'

with {prompt: "{{ q }}", response: "{{ a }}", required: "{{ good }}"}
template () {"q": "Q?", "a": "A", "good": true}
  u: Q? -> A {"good": true}

with {prompt: "{{ q }}", response: "{{ a }}", required: "{{ a }}"}
template () {"q": "Q?", "a": 0}
  u: Q? -> 0

template () {"q": "Q?", "a": ""}
template () {"q": "Q?", "a": " "}
template () {"q": "Q?", "a": null}
template () {"q": "Q?", "a": []}
template () {"q": "Q?", "a": {}}
  - '{{ a }}' is empty

with {prompt: "{{ q }}", chosen: "{{ good }}", rejected: "{{ bad }}", margin: "{{ gap }}"}
template () {"q": "Q?", "good": "A", "bad": "B", "gap": 2}
  u: Q? -> A | B [0>1 by 2.0]

with {prompt: "{{ turns }}", chosen: "{{ good }}", rejected: "{{ bad }}"}
template () {"turns": <u: Q?>, "good": <u: Q? / a: A>, "bad": <u: Q? / a: B>}
  u: Q? -> A | B [0>1]

with {prompt: "{{ q }}", chosen: "{{ good }}", rejected: "{{ bad }}"}
template () {"q": "Q?", "good": <u: Q? / a: A>, "bad": <u: Q? / a: B>}
  u: Q? -> A | B [0>1]

template {"q": "Another", "good": <u: Q? / a: A>, "bad": <u: Q? / a: B>}
  ! must be an assistant turn

with {messages: "{{ asked | dialogue(said, story) }}", system: Be brief.}
template () {"story": "Ann is 7.", "asked": ["Who?", "How old?"], "said": ["Ann", 7]}
  s: Be brief. / u: Ann is 7.\n\nWho? -> a: Ann / u: How old? / a: 7

template {"story": "Ann is 7.", "asked": ["Who?", "How old?"], "said": ["Ann"]}
  ! template.messages: zip

template {"story": "Ann is 7.", "asked": [], "said": []}
  ! there is no assistant turn

with {messages: "{{ asked | dialogue(said) }}"}
template () {"asked": ["Who?"], "said": ["Ann"]}
  u: Who? -> Ann

with {prompt: "{{ q }}"}
template {"q": "Q?", "choices": ["a", "b"]}
  ! column 'choices' means something in other tools

with {prompt: "{{ q }} {{ choices | letters }}"}
template () {"q": "Q?", "choices": ["a", "b"]}
  u: Q? A. a\nB. b ->
""")


def test_the_best_of_a_list_is_above_all_others() -> None:
    check(r"""
with {prompt: "{{ q }}", responses: "{{ all }}", best: "{{ best }}", margin: "1"}
template () {"q": "Q?", "all": ["x", "y", "z"], "best": "B"}
  u: Q? -> x | y | z [1>0 by 1.0, 1>2 by 1.0]

with {prompt: "{{ q }}", responses: "{{ all }}", best: "{{ best }}"}
template () {"q": "Q?", "all": ["x", "y", "z"], "best": 0}
  u: Q? -> x | y | z [0>1, 0>2]

template () {"q": "Q?", "all": ["x", "y", "z"], "best": null}
template () {"q": "Q?", "all": ["x", "y", "z"], "best": ""}
  u: Q? -> x | y | z []

template {"q": "Q?", "all": ["x", "y", "z"], "best": "D"}
  ! 'D' is none of the 3 choices

with {prompt: "{{ q }}", responses: "{{ all }}"}
template () {"q": "Q?", "all": ["x", "y", "z"]}
  u: Q? -> x | y | z []

with {prompt: "{{ q }}", responses: "{{ all }}", scores: "{{ votes }}"}
template () {"q": "Q?", "all": ["x", "y", "z"], "votes": [1, 3, 2]}
  u: Q? -> x (scores {"reward": 1.0}) | y (scores {"reward": 3.0}) | z (scores {"reward": 2.0})
    [1>0 by 2.0, 1>2 by 1.0, 2>0 by 1.0]

template {"q": "Q?", "all": ["x", "y"], "votes": ["x", "y"]}
  ! column 'scores' must be a number, not 'x'

template {"q": "Q?", "all": ["x", "y", "z"], "votes": "B"}
  ! template.scores: a list of 3 items is needed
""")


CONTRADICTIONS = """
                         | prompt must name
response chosen rejected | response and chosen exclude
chosen                   | chosen needs rejected
label                    | label needs response
scores                   | scores needs response
best                     | best needs responses
responses best scores    | best and scores exclude
responses scores margin  | margin needs chosen or best
"""


@pytest.mark.parametrize(("fields", "reason"), cells(CONTRADICTIONS))
def test_templates_that_contradict_themselves(fields: str, reason: str) -> None:
    template = dict.fromkeys(fields.split(), "{{ a }}")
    with pytest.raises(ValidationError, match=reason):
        Template.Options(prompt="{{ q }}" if fields else "{question}", **template)


# Recipes

QUESTIONS = {"prompt": "{{ text }}\n\n{{ q }}\n{{ options | letters }}", "response": "{{ gold }}"}
FILLED = {"text": "Rain.", "q": "What?", "options": ["Fire", "Rain"], "gold": "B", "note": "a b"}


def recipe(folder: Path, data: Any, *rows: Any) -> Path:
    write_rows(folder / "d.jsonl", rows)
    return write_recipe(folder, {"sft": {"algorithm": "sft", "data": data}})


def loaded(path: Path) -> Loaded:
    settings = load_recipe(path).stages["sft"].settings
    assert settings is not None and isinstance(settings.data, DataSpec)
    return RunData(Path).read(settings.data)


@pytest.mark.parametrize("columns", [{}, {"text": "passage"}])
def test_a_recipe_has_the_template_and_says_what_was_left_out(
    columns: dict[str, str], tmp_path: Path
) -> None:
    rows = [FILLED, {**FILLED, "gold": ""}]
    if columns:
        rows = [{**row, "passage": row["text"]} for row in rows]
    template = {"path": "d.jsonl", "columns": columns, **QUESTIONS, "required": "{{ gold }}"}
    found = loaded(recipe(tmp_path, {"template": template}, *rows))
    (group,) = found.groups
    assert shown(group).startswith(r"u: Rain.\n\nWhat?\nA. Fire\nB. Rain -> B")
    assert [(row.row, row.reason) for row in found.skipped] == [
        (2, "'{{ gold }}' is empty or false")
    ]
    lines = describe(found)
    assert lines[0].endswith("d.jsonl: template, 1 conversation")
    assert lines[1].endswith("d.jsonl: left out: '{{ gold }}' is empty or false (1: row 2)")
    assert [line.partition("kept for rewards: ")[2] for line in lines].count("note") == 1


def test_a_mistake_names_file_row_column_and_the_key_of_the_template(
    tmp_path: Path, said: Said
) -> None:
    template = {"path": "d.jsonl", **QUESTIONS, "response": "{{ godl }}"}
    assert main(["check", str(recipe(tmp_path, {"template": template}, FILLED))]) == 4
    place = f"{tmp_path / 'd.jsonl'}:1: template.response: 'godl'"
    assert place in said()


@pytest.mark.parametrize(
    ("data", "source", "help"),
    [
        ({"template": {"path": "d.jsonl", **QUESTIONS, "response": "{{ gold"}}, "'{{ gold'", ""),
        ({"path": "d.jsonl", "template": QUESTIONS}, "template:", ""),
        ({"template": {"path": "d.jsonl", "promt": "{{ q }}"}}, "promt: ", "'prompt'"),
        ({"template": {"path": "d.jsonl", **QUESTIONS}, "prompt": "x"}, "prompt: x", ""),
    ],
)
def test_mistakes_in_the_keys_are_shown_in_the_recipe(
    data: Any, source: str, help: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe(tmp_path, data))
    shown_at = {problem.source.strip(): problem.help for problem in error.value.problems}
    (said,) = [said for line, said in shown_at.items() if source in line]
    assert help in said


def test_any_format_may_have_options(tmp_path: Path) -> None:
    path = recipe(tmp_path, {"text": {"path": "t.txt", "paragraphs": True}})
    (tmp_path / "t.txt").write_text("One.\n\nTwo.\n", encoding="utf-8")
    assert [group.responses[0].text for group in loaded(path).groups] == ["One.", "Two."]


def test_files_that_hold_little_or_much(tmp_path: Path) -> None:
    data = {"template": {"path": "d.jsonl", "prompt": "{{ c7 }} {{ c199 }}"}}
    with pytest.raises(DataError, match="no usable row"):
        loaded(recipe(tmp_path, data))
    wide = {f"c{number}": str(number) for number in range(200)}
    [group] = loaded(recipe(tmp_path, data, wide)).groups
    assert group.prompt[0]["content"] == "7 199" and len(group.meta) == 198
    data["template"]["prompt"] = "{{ nowhere }}"
    with pytest.raises(DataError, match=r"'nowhere' is undefined; columns: c0, "):
        loaded(recipe(tmp_path, data, wide))


def test_types_that_differ_by_row_are_bad_rows_of_their_own(tmp_path: Path) -> None:
    values: list[Any] = ["Q?", 5, ["Q?"], {"a": None}, None]
    rows = [*({"q": value} for value in values), "Q?"]
    data = {"template": {"path": "d.jsonl", "prompt": "Say {{ q }}", "on_bad_row": "skip"}}
    path = recipe(tmp_path, data)
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert [row.row for row in loaded(path).skipped] == [3, 4, 5, 6]
    assert read("template", {"q": 5}, prompt="Say {{ q }}")
