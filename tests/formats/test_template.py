"""Templates: what a field is filled with, what a row becomes, and that mistakes name the row and
the place.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from alignkit import BadRow, Group, Message, Pair, Response
from alignkit.cli import main
from alignkit.data.sources import DataSpec, Loaded
from alignkit.errors import DataError, LeftOut, RecipeError
from alignkit.recipe.load import load_recipe
from alignkit.runs.fingerprint import RunData
from alignkit_plugins.formats.template import Template, Text, written
from alignkit_plugins.report.data_card import describe

ROW = {
    "passage": "Rain is wet.",
    "n": 3,
    "x": 1.5,
    "yes": True,
    "none": None,
    "empty": "",
    "words": ["one", "two", 3],
    "nested": {"deep": [{"text": "a", "more": {"of": "b"}}, {"text": "c", "more": {"of": "d"}}]},
    "choices": ["Fire", "Rain", "Snow"],
    "labeled": {"text": ["Fire", "Rain"], "label": ["1", "2"]},
    "listed": [{"text": "Fire", "label": "P"}, {"text": "Rain", "label": "Q"}],
    "zero": 0,
    "methods": {"items": 3, "values": ["v"]},
    "two": "2",
    "b": "b",
    "q": "Q",
    "a column": "with a space",
    "a.b": "with a dot",
}


def read(row: Any, **template: Any) -> Group:
    """The checked group of a row."""
    reader = Template(Template.Options(**template))
    group = reader.read(row)
    reader.check(group)
    return group


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


# Texts


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{{ passage }} {{ n }} {{ x }} {{ yes }}", "Rain is wet. 3 1.5 true"),
        ("[{{ empty }}|{{ none | default('', true) }}|{{ missing | default('') }}]", "[||]"),
        ("{{ words[0] }} {{ words[-1] }} {{ words | join(', ') }}", "one 3 one, two, 3"),
        ("{{ nested.deep[1].more.of }} {{ nested.deep | map(attribute='text') | join }}", "d ac"),
        ("{{ choices | letters }}", "A. Fire\nB. Rain\nC. Snow"),
        ("{{ zero | letter(choices) }}{{ b | letter(choices) }}{{ two | letter(choices) }}", "ABC"),
        ("{{ two | letter(labeled.text, labeled.label) }}", "B"),
        ("{{ {'3': 'three', '4': 'four'}[n | string] }}", "three"),
        ("\\boxed{ {{ n }} }", "\\boxed{ 3 }"),
        (" {{ passage }} ", "Rain is wet."),
        ("{{ methods.items }} {{ methods.values[0] }}", "3 v"),
    ],
)
def test_a_text_is_filled_with_what_the_row_holds(text: str, filled: str) -> None:
    assert written(Text(text).value(ROW)) == filled


def test_a_single_expression_keeps_its_type() -> None:
    values = {"{{ words }}": ["one", "two", 3], "{{ n }}": 3, "{{ none }}": None, "{{ n }}.": "3."}
    assert {text: Text(text).value(ROW) for text in values} == values


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ pasage }}", "'pasage' is undefined; did you mean 'passage'?"),
        ("{{ nested.depp }} is", "has no attribute 'depp'"),
        ("{{ none }} is", 'null is no text; write default("", true) if it may be null'),
        ("{{ words }} are", "a list is no text"),
        ("{{ nested }} is", "an object is no text"),
        ("{{ words[3] }}", "has no element 3"),
        ("{{ [passage, nested.depp] }}", "has no attribute 'depp'"),
        ("{{ passage.title }}", "is no text"),
        ("{{ passage.title }} is", "is no text"),
        ("{{ passage | letters }}", "expected a list, not text"),
        # An answer that is no choice is never taken for another one.
        ("{{ n | letter(choices) }}", "3 is none of the 3 choices"),
        ("{{ q | letter(choices) }}", "'Q' is none of the 3 choices"),
        ("{{ yes | letter(choices) }}", "True is none of the 3 choices"),
        ("{{ none | letter(choices) }}", "None is none of the 3 choices"),
        ("{{ x | letter(choices) }}", "1.5 is none of the 3 choices"),
        ("{{ zero | letter(labeled.text, labeled.label) }}", "0 is none of the 2 choices"),
        ("{{ {'1': 'one'}[n | string] }}", "has no attribute '3'"),
        ("{{ words | dialogue(choices[:2]) }}", "zip() argument 2 is shorter"),
    ],
)
def test_what_a_row_does_not_hold_is_named(text: str, reason: str) -> None:
    with pytest.raises(BadRow) as error:
        Text(text).value(ROW)
    assert reason in str(error.value)


@pytest.mark.parametrize("text", ["{{ a", "{{ a | leters }}", "{% if a %}"])
def test_a_text_that_is_not_valid_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="not valid Jinja"):
        Template.Options(prompt="{{ q }}", response=text)


@pytest.mark.parametrize("path", ["''.__class__", "q.__class__.__mro__", "words.append('x')"])
def test_nothing_but_data_can_be_reached(path: str) -> None:
    with pytest.raises(BadRow, match=r"unsafe|undefined|no attribute"):
        Text(f"{{{{ {path} }}}}").value(ROW)


# Rows


def test_a_demonstration_with_what_the_template_does_not_use() -> None:
    row = {"context": "Rain is wet.", "question": "What?", "answer": "rain", "note": "by hand"}
    group = read(
        row,
        prompt="{{ context }}\n\n{{ question }}",
        response="{{ answer }}",
        system="Be {{ answer }}.",
        answer="{{ answer }}",
    )
    assert group.prompt == (
        Message(role="system", content="Be rain."),
        *user("Rain is wet.\n\nWhat?"),
    )
    assert group.responses == (Response(text="rain"),) and group.pairs is None
    assert group.meta == {"note": "by hand", "answer": "rain"}
    assert read(row, prompt="{{ question }}").meta == {
        "context": "Rain is wet.",
        "answer": "rain",
        "note": "by hand",
    }


def test_labels_and_scores_of_a_response() -> None:
    row = {"q": "Q?", "a": "A", "good": "no", "grade": "4"}
    template = {"prompt": "{{ q }}", "response": "{{ a }}"}
    assert read(row, **template, label="{{ good == 'yes' }}").responses == (
        Response(text="A", label=False),
    )
    assert read(row, **template, scores="{{ grade }}").responses == (
        Response(text="A", scores={"reward": 4.0}),
    )
    with pytest.raises(BadRow, match=r"^column 'label' must be true or false, not 'no'$"):
        read(row, **template, label="{{ good }}")
    with pytest.raises(BadRow, match=r"^column 'scores' must be a number, not 'no'$"):
        read(row, **template, scores="{{ good }}")


def test_a_pair() -> None:
    row = {"q": "Q?", "good": "A", "bad": "B", "gap": 2}
    group = read(
        row, prompt="{{ q }}", chosen="{{ good }}", rejected="{{ bad }}", margin="{{ gap }}"
    )
    assert group.responses == (Response(text="A"), Response(text="B")) and group.pairs == (
        Pair(0, 1, margin=2.0),
    )


def test_messages_stay_messages_and_the_prompt_is_not_said_twice() -> None:
    turns = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A"}]
    row = {
        "turns": turns[:1],
        "q": "Q?",
        "good": turns,
        "bad": [turns[0], {"role": "assistant", "content": "B"}],
    }
    for prompt in ("{{ turns }}", "{{ q }}"):
        group = read(row, prompt=prompt, chosen="{{ good }}", rejected="{{ bad }}")
        assert group.prompt == user("Q?") and group.responses == (
            Response(text="A"),
            Response(text="B"),
        )
    with pytest.raises(BadRow, match="must be an assistant turn"):
        read(row, prompt="Another {{ q }}", chosen="{{ good }}", rejected="{{ bad }}")


def test_the_best_of_a_list_is_above_all_others() -> None:
    row = {"q": "Q?", "all": ["x", "y", "z"], "best": "B", "votes": [1, 3, 2], "none": None}
    template = {"prompt": "{{ q }}", "responses": "{{ all }}"}
    group = read(row, **template, best="{{ best }}", margin="1")
    assert [response.text for response in group.responses] == ["x", "y", "z"]
    assert group.pairs == (Pair(1, 0, margin=1.0), Pair(1, 2, margin=1.0))
    assert read(row, **template, best="{{ votes[2] }}").pairs == (Pair(2, 0), Pair(2, 1))
    assert read(row, **template, best="{{ none }}").pairs == () == read(row, **template).pairs
    assert read(row, **template, best="").pairs == ()
    scored = read(row, **template, scores="{{ votes }}")
    assert scored.pairs == (Pair(1, 0, margin=2.0), Pair(1, 2, margin=1.0), Pair(2, 0, margin=1.0))
    with pytest.raises(BadRow, match="'D' is none of the 3 choices"):
        read(row, **template, best="D")
    with pytest.raises(BadRow, match=r"^column 'scores' must be a number, not 'x'$"):
        read(row, **template, scores="{{ all }}")
    with pytest.raises(BadRow, match=r"^template\.scores: a list of 3 items is needed$"):
        read(row, **template, scores="{{ best }}")


def test_a_conversation_in_two_columns() -> None:
    row = {"story": "Ann is 7.", "asked": ["Who?", "How old?"], "said": ["Ann", 7]}
    messages = "{{ asked | dialogue(said, story) }}"
    group = read(row, messages=messages, system="Be brief.")
    assert group.prompt == (Message(role="system", content="Be brief."), *user("Ann is 7.\n\nWho?"))
    said = (("assistant", "Ann"), ("user", "How old?"), ("assistant", "7"))
    assert group.responses[0].messages == tuple(
        Message(role=role, content=text) for role, text in said
    )
    assert read(row, messages="{{ asked | dialogue(said) }}").prompt == user("Who?")
    with pytest.raises(BadRow, match=r"^template\.messages: zip"):
        read({**row, "said": ["Ann"]}, messages=messages)
    with pytest.raises(BadRow, match="there is no assistant turn"):
        read({**row, "asked": [], "said": []}, messages=messages)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ({}, "prompt must name a column"),
        ({"prompt": "{question}"}, "prompt must name a column"),
        (
            {"prompt": "{{ q }}", "response": "{{ a }}", "chosen": "{{ a }}", "rejected": "x"},
            "response and chosen exclude",
        ),
        ({"prompt": "{{ q }}", "chosen": "{{ a }}"}, "chosen needs rejected"),
        ({"prompt": "{{ q }}", "label": "true"}, "label needs response"),
        ({"prompt": "{{ q }}", "scores": "1"}, "scores needs response or responses"),
        ({"prompt": "{{ q }}", "best": "0"}, "best needs responses"),
        (
            {"prompt": "{{ q }}", "responses": "{{ r }}", "best": "0", "scores": "{{ s }}"},
            "best and scores exclude",
        ),
        (
            {"prompt": "{{ q }}", "responses": "{{ r }}", "scores": "{{ s }}", "margin": "1"},
            "margin needs chosen or best",
        ),
    ],
)
def test_templates_that_contradict_themselves(template: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Template.Options(**template)


@pytest.mark.parametrize("empty", ["", " ", None, [], {}])
def test_rows_without_a_required_column_are_left_out(empty: Any) -> None:
    template = {"prompt": "{{ q }}", "response": "{{ a }}", "required": "{{ a }}"}
    assert read({"q": "Q?", "a": "A"}, **template).responses == (Response(text="A"),)
    assert read({"q": "Q?", "a": 0}, **template).responses == (Response(text="0"),)
    with pytest.raises(LeftOut, match=r"'\{\{ a \}\}' is empty"):
        read({"q": "Q?", "a": empty}, **template)


@pytest.mark.parametrize(
    "row", [None, 5, "text", [1], {}, {"q": None}, {"q": {"a": None}}, {"q": [None]}, {"q": " "}]
)
def test_rows_of_other_types_are_refused_without_a_traceback(row: Any) -> None:
    with pytest.raises(BadRow):
        read(row, prompt="{{ q }}")


def test_columns_that_other_tools_give_a_meaning_are_not_lost() -> None:
    with pytest.raises(BadRow, match="column 'choices' means something in other tools"):
        read(ROW, prompt="{{ passage }}")
    assert "choices" not in read(ROW, prompt="{{ passage }} {{ choices | letters }}").meta


# Recipes

ROWS = [
    {
        "passage": "Rain is wet.",
        "question": "What?",
        "options": ["Fire", "Rain"],
        "gold": "B",
        "note": "a few words",
    },
    {
        "passage": "Snow is cold.",
        "question": "What?",
        "options": ["Fire", "Snow"],
        "gold": "",
        "note": "a few words",
    },
]
TEMPLATE = {
    "prompt": "{{ passage }}\n\n{{ question }}\n{{ options | letters }}",
    "response": "{{ gold }}",
}


def recipe(folder: Path, data: Any, rows: Any = ROWS) -> Path:
    (folder / "d.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    stages = {"sft": {"algorithm": "sft", "data": data}}
    text = yaml.safe_dump(
        {"model": {"base": "tiny"}, "stages": stages}, default_flow_style=False, sort_keys=False
    )
    (folder / "r.yaml").write_text(text, encoding="utf-8")
    return folder / "r.yaml"


def loaded(path: Path, *overrides: str) -> Loaded:
    settings = load_recipe(path, overrides).stages["sft"].settings
    assert settings is not None and isinstance(settings.data, DataSpec)
    return RunData(Path, 0).read(settings.data)


@pytest.mark.parametrize(
    "data",
    [
        {"template": {"path": "d.jsonl", **TEMPLATE, "required": "{{ gold }}"}},
        {"template": {"path": "d.jsonl", "columns": {"text": "passage"},
            **TEMPLATE, "prompt": TEMPLATE["prompt"].replace("passage", "text"), "required": "{{ gold }}"}},
    ],
)  # fmt: skip
def test_a_recipe_has_the_template_and_says_what_was_left_out(data: Any, tmp_path: Path) -> None:
    found = loaded(recipe(tmp_path, data))
    assert [group.prompt for group in found.groups] == [
        user("Rain is wet.\n\nWhat?\nA. Fire\nB. Rain")
    ]
    [skipped] = found.skipped
    assert (skipped.row, skipped.reason) == (2, "'{{ gold }}' is empty or false")
    lines = describe(found)
    assert lines[0].endswith("d.jsonl: template, 1 conversation, 1 bad row")
    assert [line.partition("kept for rewards: ")[2] for line in lines].count("note") == 1


def test_a_mistake_names_file_row_column_and_the_key_of_the_template(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, {"template": {"path": "d.jsonl", **TEMPLATE, "response": "{{ godl }}"}})
    assert main(["check", str(path)]) == 4
    reason = "template.response: 'godl' is undefined; did you mean 'gold'?"
    assert f"{tmp_path / 'd.jsonl'}:1: {reason}" in capsys.readouterr().err


def test_a_template_with_wrong_braces_is_shown_in_the_recipe(tmp_path: Path) -> None:
    path = recipe(tmp_path, {"template": {"path": "d.jsonl", **TEMPLATE, "response": "{{ gold"}})
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    [problem] = error.value.problems
    assert problem.message.startswith("stages.sft.data.template.response: not valid Jinja")
    assert problem.line and problem.source.strip() == "response: '{{ gold'"


@pytest.mark.parametrize(
    ("data", "help"),
    [
        ({"path": "d.jsonl", "template": TEMPLATE}, "unknown key 'template'"),
        (
            {"template": {"path": "d.jsonl", "promt": "{{ q }}"}},
            "unknown key 'promt'(?s:.)*help: did you mean 'prompt'",
        ),
        ({"template": {"path": "d.jsonl", **TEMPLATE}, "prompt": "x"}, "unknown key 'prompt'"),
    ],
)
def test_mistakes_in_the_keys(data: Any, help: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=help):
        load_recipe(recipe(tmp_path, data))


def test_any_format_may_have_options(tmp_path: Path) -> None:
    path = recipe(tmp_path, {"text": {"path": "t.txt", "paragraphs": True}})
    (tmp_path / "t.txt").write_text("One.\n\nTwo.\n", encoding="utf-8")
    assert [group.responses[0].text for group in loaded(path).groups] == ["One.", "Two."]


def test_files_that_hold_little_or_much(tmp_path: Path) -> None:
    data = {"template": {"path": "d.jsonl", "prompt": "{{ c7 }} {{ c199 }}"}}
    with pytest.raises(DataError, match="no usable row; it has no row that the recipe reads"):
        loaded(recipe(tmp_path, data, []))
    wide = {f"c{number}": str(number) for number in range(200)}
    [group] = loaded(recipe(tmp_path, data, [wide])).groups
    assert group.prompt == user("7 199") and len(group.meta) == 198
    data["template"]["prompt"] = "{{ nowhere }}"
    with pytest.raises(DataError, match=r"'nowhere' is undefined; columns: c0, "):
        loaded(recipe(tmp_path, data, [wide]))


def test_types_that_differ_by_row_are_bad_rows_of_their_own(tmp_path: Path) -> None:
    rows = [{"q": "Q?"}, {"q": 5}, {"q": ["Q?"]}, {"q": {"a": None}}, {"q": None}, "Q?"]
    with pytest.raises(DataError) as error:
        loaded(recipe(tmp_path, {"template": {"path": "d.jsonl", "prompt": "Say {{ q }}"}}, rows))
    assert str(error.value).startswith("4 bad rows:")
    assert [
        line.partition(": ")[0].rpartition(":")[2] for line in str(error.value).splitlines()[1:5]
    ] == [*"3456"]
