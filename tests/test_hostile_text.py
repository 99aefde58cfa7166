"""Texts that no file system can have as a name, or that would act on a terminal: exit 2 or 4, and
plain output.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignkit.cli import main
from alignkit.io.text import exists, expanded, is_dir, is_file, printable, resolved
from tests.rows import write_rows

RED = "\x1b[31mred\x1b[0m\x9b1m\u202eder\x07"
UNKNOWN = "~nobody-of-this-name/x"
LONG, NUL = RED + "x" * 5000, f"{UNKNOWN}{RED}\0b"


@pytest.mark.parametrize("name", [LONG, UNKNOWN, NUL, "y" * 300])
def test_names_that_cannot_be(name: str) -> None:
    assert not (is_file(name) or is_dir(name) or exists(name))
    assert str(expanded(name)) == name
    assert resolved(Path("/tmp") / "z") == Path("/tmp/z").resolve()


def test_control_characters_are_shown_as_such() -> None:
    assert printable(RED) == "\ufffd[31mred\ufffd[0m\ufffd1m\ufffdder\ufffd"
    assert printable("a\tb\nc é 日本 👩‍👧\u00a0") == "a\tb\nc é 日本 👩‍👧\u00a0"


RECIPES = """\
{model: {base: tiny}, stages: {sft: {algorithm: sft, data: "TEXT"}}}
{model: {base: tiny}, stages: {sft: {algorithm: sft, data: {path: "TEXT"}}}}
{model: {base: tiny}, stages: {sft: {algorithm: sft, data: {hub: "./TEXT"}}}}
{model: {base: tiny}, stages: {sft: {algorithm: sft, data: demos.jsonl, validation: "TEXT"}}}
{model: {base: tiny}, stages: {sft: {algorithm: sft, data: demos.jsonl, from: "TEXT"}}}
{model: {base: tiny}, stages: {sft: {algorithm: sft, data: demos.jsonl, epochs: "TEXT"}}}
{model: {base: tiny}, stages: {sft: {algorithm: sft, data: demos.jsonl, "TEXT": 1}}}
{model: {base: tiny}, stages: {sft: {algorithm: "TEXT", data: demos.jsonl}}}
{model: {base: tiny}, stages: {"TEXT": {algorithm: sft, data: demos.jsonl}}}
{model: {base: "TEXT"}, stages: {sft: {algorithm: sft, data: demos.jsonl}}}
{model: {base: "./TEXT"}, stages: {sft: {algorithm: sft, data: demos.jsonl}}}
{model: {base: tiny, chat_template: "TEXT"}, stages: {sft: {algorithm: sft, data: demos.jsonl}}}
{extends: "TEXT", model: {base: tiny}, stages: {sft: {algorithm: sft, data: demos.jsonl}}}
{model: {base: tiny}, stages: {a: {algorithm: rloo, prompts: demos.jsonl, reward: {folder: "TEXT"}}}}
{model: {base: tiny}, stages: {a: {algorithm: rloo, prompts: x.jsonl, reward: {python: {path: "TEXT", function: f}}}}}
{model: {base: tiny}, stages: ["TEXT"
"""
GOOD = RECIPES.splitlines()[0].replace("TEXT", "demos.jsonl")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ALIGNKIT_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "demos.jsonl", [{"prompt": "a", "completion": "b"}])
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str, command: str = "run") -> tuple[int, str]:
    """The exit code, and what is said, in which nothing acts on the terminal."""
    code = main([command, *words])
    said = "".join(capsys.readouterr())
    assert "unexpected" not in said and "Traceback" not in said
    assert not {*"\x1b\x07\x9b\u202e"}.intersection(said)
    return code, said


@pytest.mark.parametrize("text", [LONG, NUL], ids=["long", "NUL"])
@pytest.mark.parametrize("recipe", RECIPES.splitlines())
def test_impossible_names_are_mistakes_of_the_recipe(
    capsys: pytest.CaptureFixture[str], recipe: str, text: str
) -> None:
    written = recipe.replace("TEXT", json.dumps(text)[1:-1])
    Path("r.yaml").write_text(written, encoding="utf-8")
    code, said = run(capsys, "r.yaml")
    assert code in (2, 4) and ("r.yaml" in said or "hub:" in recipe)


@pytest.mark.parametrize("option", ["--out", "--plugin"])
@pytest.mark.parametrize("text", [LONG, NUL], ids=["long", "NUL"])
def test_impossible_names_in_options(
    capsys: pytest.CaptureFixture[str], option: str, text: str
) -> None:
    Path("r.yaml").write_text(GOOD)
    assert run(capsys, "r.yaml", option, text)[0] in (2, 3, 5)


@pytest.mark.parametrize("name", [LONG, UNKNOWN, NUL])
def test_a_recipe_that_cannot_be(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, said = run(capsys, name)
    assert code == 2 and "no such recipe" in said


@pytest.mark.parametrize(
    "row",
    [
        {RED: 1},
        {"prompt": "a", "completion": "b", RED: 1},
        {"prompt": RED, "completion": RED},
        {"prompt": {RED: RED}},
    ],
)
def test_data_cannot_act_on_the_terminal(capsys: pytest.CaptureFixture[str], row: Any) -> None:
    write_rows(Path("demos.jsonl"), [row])
    Path("r.yaml").write_text(GOOD)
    assert run(capsys, "r.yaml", command="check")[1]
