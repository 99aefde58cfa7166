"""Errors and exit codes as JSON: `alignkit --json COMMAND`, and commands that have a `--json` of
their own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from documented_commands import ROOT
from jsonschema_rs import validate
from stores import event, opened, pair

from alignkit import cli
from alignkit.cli import outcome
from alignkit.contract.commands import Result
from alignkit.errors import Problem, RecipeError, Repeated
from tests.rows import cells, read_json, write_recipe, write_rows

SCHEMA = read_json(ROOT / "docs" / "assets" / "outcome.schema.json")
LOUD = """print('hello')
from alignkit import Reward, hookimpl
class Loud(Reward):
    def score(self, groups): ...
@hookimpl
def register(add):
    add("reward", "loud", Loud)
"""
RECIPE = """model: {base: tiny}
stages:
  sft: {algorithm: sft, data: demos.jsonl, learnin_rate: 1}
"""


def said(capfd: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """The only document on stdout, which the schema allows, and stderr."""
    out, err = capfd.readouterr()
    document = json.loads(out)
    validate(SCHEMA, document)
    return document, err


def test_the_schema_names_a_shape_for_each_kind() -> None:
    kinds = SCHEMA["properties"]["kind"]["enum"]
    shapes = [part["then"]["properties"]["result"]["$ref"] for part in SCHEMA["allOf"]]
    assert [f"#/$defs/{kind or 'none'}" for kind in kinds] == shapes
    assert SCHEMA["$defs"].keys() == {"Mistake"} | {
        shape.removeprefix("#/$defs/") for shape in shapes
    }


@pytest.mark.parametrize("words", ["--json run", "check --json"])
def test_all_mistakes_have_their_places(
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    assert cli.main([*words.split(), "recipe.yaml", "sed=1"]) == 2
    document, err = said(capfd)
    assert document["exit_code"] == 2 and "error: unknown key 'learnin_rate'" in err
    mistakes = {error["message"]: error for error in document["errors"]}
    (written,) = [error for message, error in mistakes.items() if "learnin_rate" in message]
    column = RECIPE.splitlines()[2].index("learnin") + 1
    assert (written["code"], written["line"], written["column"]) == (2, 3, column)
    assert written["file"].endswith("recipe.yaml") and "learning_rate" in written["help"]
    (typed,) = [error for message, error in mistakes.items() if "'sed'" in message]
    assert "sed=1" in typed["file"] and typed["line"] == 0


FAILING = """
show nowhere
evaluate nowhere --prompts none
chat nowhere
label nowhere
labels nowhere.feedback
data stats nowhere
serve nowhere
export nowhere
verify nowhere
plugins nothing
init --from nothing
run nowhere --seed 1
rum
check
"""


@pytest.mark.parametrize("words", FAILING.strip().splitlines())
def test_every_command_fails_as_json(
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code = cli.main(["--json", *words.split()])
    document, err = said(capfd)
    assert code == document["exit_code"] > 0
    assert document["errors"] and all(error["message"] in err for error in document["errors"])


def test_what_a_command_prints_goes_to_stderr(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "loud.py").write_text(LOUD, encoding="utf-8")
    assert cli.main(["plugins", "loud", "--plugin", str(tmp_path / "loud.py"), "--json"]) == 0
    document, err = said(capfd)
    assert document["result"][0]["name"] == "loud" and "hello" in err


# What each command is tried with, in this order. The test of training has the others.
COMMANDS = """
init            | project
init            | --list
check           | r.yaml
check           | r.yaml sft
check           | r.yaml --plan
plugins         |
plugins         | ppo
plugins         | --schema
plugins new     | calm
plugins check   | alignkit-calm/alignkit_calm.py
data check      | rows.jsonl
data clean      | rows.jsonl --out clean.jsonl
data convert    | rows.jsonl --to sft --out sft.jsonl
labels          | one.feedback
labels merge    | one.feedback --into two.feedback
labels export   | one.feedback --out shared
run             | r.yaml
show            | runs/r
show            |
export          | runs/r/sft exported
verify          | runs/r
evaluate        | runs/r/base runs/r/sft --prompts rows.jsonl --reward length --limit 2
evaluate        | rows.jsonl --reward repetition
run             | r.yaml --each seed=3..3 --out many
"""
TALK = {"chat", "serve", "label", "data browse"}


def test_every_command_has_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {'very ' * n}{n}."} for n in range(4)]
    write_rows(tmp_path / "rows.jsonl", rows)
    sft = {"algorithm": "sft", "data": "rows.jsonl", "epochs": 1, "max_length": 32}
    write_recipe(tmp_path, {"sft": sft}).rename("r.yaml")
    item = pair("asked", license="CC0-1.0")
    with opened(tmp_path, item, name="one.feedback") as store:
        store.submit(event(None, {"granted": True}, kind="consent", who="ann"))
        store.submit(event(item, who="ann"))
    kinds, tried = set(), set(TALK)
    for command, words in cells(COMMANDS):
        code = cli.main([*command.split(), *words.split(), "--json"])
        document, err = said(capfd)
        assert code == document["exit_code"] == 0, (command, err)
        assert document["kind"] and not document["errors"], command
        kinds.add(document["kind"])
        tried.add(command)
    assert kinds == set(SCHEMA["$defs"]) - {"Mistake", "none"}
    group: Any = cli.program()
    names = set()
    for name, one in group.commands.items():
        names |= {f"{name} {each}" for each in getattr(one, "commands", ())}
        if getattr(one, "invoke_without_command", True):
            names.add(name)
    assert names == tried


def test_a_result_may_come_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}] * 2)
    assert cli.main(["--json", "data", "check", "rows.jsonl"]) == Repeated.exit_code
    document = said(capfd)[0]
    assert document["result"]["faults"]["duplicates"] == 1
    assert document["errors"][0]["code"] == Repeated.exit_code


def test_numbers_that_json_has_not_are_null_and_paths_are_texts() -> None:
    result = json.loads(
        outcome(Result("x", {"folder": Path("a/b"), 1: (float("nan"), 1.5, True, None)}))
    )["result"]
    assert result == {"folder": "a/b", "1": [None, 1.5, True, None]} and result["1"][2] is True
    key = "sk-abcdefghijklmnop1234"
    assert key not in outcome(Result(error=RecipeError([Problem(key, key, help=key)])))


@pytest.mark.parametrize("words", ["plugins --no-plugin", "--plugin --no-plugin x run"])
def test_an_option_of_every_command_without_a_value(
    words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words.split()) == 2
    assert "plugin: expected one argument" in capfd.readouterr().err


def test_an_interruption_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("alignkit.recipe.yaml.shipped", interrupted)
    assert cli.main(["--json", "init", "--list"]) == 130
    assert said(capfd)[0]["errors"][0]["message"] == "interrupted"
