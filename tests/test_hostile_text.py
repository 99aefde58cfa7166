"""Texts that no file system can have as a name, or that would act on a terminal: exit 2 or 4, and
plain output.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit.cli import main
from alignkit.io.text import exists, expanded, is_dir, is_file, printable, resolved
from tests.rows import Said

LONG, UNKNOWN, NUL, INLINE = "x" * 5000, "~nobody-of-this-name/x", "a\0b", "{{ messages }}\n" * 400
RED = "\x1b[31mred\x1b[0m\x9b1m\u202eder\x07"


@pytest.mark.parametrize("name", [LONG, UNKNOWN, NUL, "y" * 300])
def test_names_that_cannot_be(name: str) -> None:
    assert not (is_file(name) or is_dir(name) or exists(name))
    assert str(expanded(name)) == name
    assert resolved(Path("/nowhere") / "z") == Path("/nowhere/z").resolve()


def test_control_characters_are_shown_as_such() -> None:
    assert printable(RED) == "\ufffd[31mred\ufffd[0m\ufffd1m\ufffdder\ufffd"
    acting = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\0\b\v\r\x1f\x7f\x80\x9f\ud800\udfff"
    assert printable(acting) == "\ufffd" * 21
    assert printable("a\tb\nc é 日本 👩‍👧\u00a0") == "a\tb\nc é 日本 👩‍👧\u00a0"


def recipe(**changes: Any) -> dict[str, Any]:
    sft: dict[str, Any] = {"algorithm": "sft", "data": "demos.jsonl"}
    whole: dict[str, Any] = {"model": {"base": "tiny"}, "stages": {"sft": sft}}
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = whole
        for parent in parents:
            if not isinstance(place.get(parent), dict):
                place[parent] = dict(ALIGN) if parent == "align" else {}
            place = place[parent]
        place[last] = value
    return whole


ALIGN = {"algorithm": "rloo", "prompts": "demos.jsonl", "iterations": 1}
PLACES: dict[str, Any] = yaml.safe_load("""
stages__sft__data: TEXT
stages__sft__data__path: TEXT
stages__sft__data__hub: ./TEXT
stages__sft__validation: TEXT
stages__sft__from: TEXT
model__base: TEXT
model__chat_template: TEXT
extends: TEXT
stages__align__reward__folder: TEXT
stages__align__reward__python: {path: TEXT, function: f}
""")


def run(folder: Path, content: dict[str, Any] | str, *arguments: str) -> int:
    (folder / "demos.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "r.yaml").write_text(text, encoding="utf-8")
    return main(["run", str(folder / "r.yaml"), "--out", str(folder / "run"), *arguments])


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ALIGNKIT_DEBUG", raising=False)


@pytest.mark.parametrize(
    "text", [LONG, UNKNOWN, NUL, INLINE], ids=["long", "unknown user", "NUL", "inline"]
)
@pytest.mark.parametrize("place", PLACES)
def test_impossible_names_are_mistakes_of_the_recipe(
    tmp_path: Path, said: Said, place: str, text: str
) -> None:
    hostile = json.dumps(recipe(**{place: PLACES[place]})).replace("TEXT", json.dumps(text)[1:-1])
    code = run(tmp_path, hostile)
    err = said()
    assert code in (2, 4) and "unexpected" not in err and "Traceback" not in err, err
    assert "r.yaml" in err or place.endswith("hub")


@pytest.mark.parametrize("option", ["--out", "--plugin"])
@pytest.mark.parametrize("text", [LONG, NUL], ids=["long", "NUL"])
def test_impossible_names_in_options(tmp_path: Path, said: Said, option: str, text: str) -> None:
    code = run(tmp_path, recipe(), option, str(tmp_path / text))
    assert code in (2, 3, 5) and "unexpected" not in said()


@pytest.mark.parametrize("name", [LONG, UNKNOWN, NUL, f"{RED}.yaml"])
def test_a_recipe_that_cannot_be(said: Said, name: str) -> None:
    assert main(["run", name]) == 2
    err = said()
    assert "no such recipe" in err and "\x1b" not in err


HOSTILE: dict[str, Any] = {
    "a key": json.dumps(recipe(stages__sft__epochs=1)).replace("epochs", "\\u001b[31mepochs"),
    "a stage": json.dumps(recipe(stages={RED: {"algorithm": "sft", "data": "demos.jsonl"}})),
    "an algorithm": recipe(stages__sft__algorithm=RED),
    "a file": recipe(stages__sft__data=f"{RED}.jsonl"),
    "a model": recipe(model__base=f"./{RED}"),
    "a value": recipe(stages__sft__epochs=RED),
    "YAML": "model: {base: tiny}\nstages: [\x1b[31m",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_recipe_cannot_act_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    assert run(tmp_path, HOSTILE[case]) != 0
    said = capsys.readouterr()
    assert not any(character in said.out + said.err for character in "\x1b\x07\x9b\u202e")


@pytest.mark.parametrize(
    "row",
    [
        {RED: 1},
        {"prompt": "a", "completion": "b", RED: 1},
        {"prompt": RED, "completion": RED},
        {"prompt": {RED: RED}},
    ],
    ids=["columns", "a column", "texts", "a bad row"],
)
def test_data_cannot_act_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: Any
) -> None:
    (tmp_path / "r.json").write_text(
        json.dumps(recipe(stages__sft__data="rows.jsonl")), encoding="utf-8"
    )
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    main(["check", str(tmp_path / "r.json")])
    said = capsys.readouterr()
    assert said.out + said.err
    assert not any(character in said.out + said.err for character in "\x1b\x07\x9b\u202e")
