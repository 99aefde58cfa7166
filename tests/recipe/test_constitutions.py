"""Constitutions: what a file or a list in a recipe may say, and where a mistake is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit import cli
from alignkit.io.digest import digest
from alignkit.recipe.load import load_recipe
from alignkit.recipe.yaml import shipped, shipped_folder
from alignkit.runs.fingerprint import RunData, stage_parts
from alignkit_plugins.ai_feedback.constitution import Principle, shipped_constitutions
from alignkit_plugins.recipes.init_write import copy_recipe

GOOD = """\
# a comment
- name: calm
  critique: What is
    loud?
  revise: Say it quietly.
- {name: short, compare: The shorter one.}
"""


def recipe(folder: Path, constitution: Any = "own.yaml", text: str = GOOD) -> Path:
    (folder / "own.yaml").write_text(text, encoding="utf-8")
    (folder / "prompts.jsonl").write_text('{"prompt": "q"}\n', encoding="utf-8")
    step = {"step": "revise", "prompts": "prompts.jsonl", "constitution": constitution}
    path = folder / "recipe.yaml"
    path.write_text(
        yaml.safe_dump({"model": {"base": "tiny"}, "stages": {"revised": step}}), encoding="utf-8"
    )
    return path


def principles(path: Path) -> Any:
    return load_recipe(path).stages["revised"].component.options.constitution


def wrong(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["check", str(path)]) == 2
    return capsys.readouterr().err


def test_a_file_holds_principles(tmp_path: Path) -> None:
    assert principles(recipe(tmp_path)) == (
        Principle(name="calm", critique="What is loud?", revise="Say it quietly."),
        Principle(name="short", compare="The shorter one."),
    )


def test_the_same_list_may_be_in_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert principles(recipe(tmp_path, yaml.safe_load(GOOD))) == principles(recipe(tmp_path / "a"))


def test_a_shipped_one_is_found_by_name_unless_a_file_has_it(tmp_path: Path) -> None:
    assert len(principles(recipe(tmp_path, "harmless"))) == 16
    path = recipe(tmp_path, "harmless")
    (tmp_path / "harmless").write_text(GOOD, encoding="utf-8")
    assert len(principles(path)) == 2


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (GOOD.replace("critique:", "criticize:"), 3, "unknown key 'criticize'"),
        (GOOD.replace("  revise: Say it quietly.\n", ""), 2, "'revise' is missing"),
        (GOOD.replace("calm", "short"), 6, "the name 'short' is used twice"),
        (
            GOOD.replace(", compare: The shorter one.", ""),
            6,
            "needs 'critique' and 'revise', or 'compare'",
        ),
        (GOOD.replace("calm", "''"), 2, "name"),
        (GOOD.replace("Say it quietly.", "' '"), 5, "is empty"),
        (GOOD.replace("Say it quietly.", "[a]"), 5, "must be a valid string"),
        (GOOD + "- just text\n", 7, "must be an object"),
        (GOOD + "  oops\n", 7, "not valid YAML"),
        ("principles:\n" + GOOD.replace("\n", "\n  "), 1, "must be a valid array"),
        ("[]\n", 1, "must have at least 1 item"),
        (GOOD + "- {name: calm, name: calm, compare: c}\n", 7, "duplicate key 'name'"),
    ],
)
def test_a_mistake_in_a_file_is_shown_where_it_is(
    text: str, line: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = wrong(recipe(tmp_path, text=text), capsys)
    assert message in said and f"--> {tmp_path / 'own.yaml'}:{line}:" in said


@pytest.mark.parametrize("text", [GOOD.replace("critique:", "criticize:"), GOOD + "- oops: [\n"])
def test_stages_with_the_same_file_show_its_mistakes_once(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, text=text)
    written = yaml.safe_load(path.read_text())
    judged = {
        "step": "judge_pairs",
        "prompts": "prompts.jsonl",
        "policy": "base",
        "judge": "local_judge",
    }
    written["stages"]["pairs"] = {**judged, "constitution": "own.yaml"}
    path.write_text(yaml.safe_dump(written), encoding="utf-8")
    assert wrong(path, capsys).count("error: ") == 1


def test_an_override_starts_at_the_current_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = recipe(tmp_path, "harmless")
    assert cli.main(["check", str(path), "stages.revised.constitution=own.yaml"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"no such constitution: {tmp_path / 'here' / 'own.yaml'}" in said
    assert (
        cli.main(["check", str(path), f"stages.revised.constitution={tmp_path / 'own.yaml'}"]) == 0
    )


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("harmles", "did you mean 'harmless'?"),
        ("my.yaml", "shipped constitutions: harmless, helpful_honest"),
        (".", "cannot read the file: is a directory"),
        (3, "must be a valid array"),
    ],
)
def test_what_is_no_constitution(
    named: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in wrong(recipe(tmp_path, named), capsys)


def test_another_constitution_is_another_stage(tmp_path: Path) -> None:
    """A comment or a line break changes nothing, and a word does."""

    def hashed(text: str) -> str:
        loaded = load_recipe(recipe(tmp_path, text=text))
        return digest(stage_parts(loaded.stages["revised"], loaded, "base", {}, RunData(Path, 0)))

    assert hashed(GOOD) == hashed(
        GOOD.replace("a comment", "another").replace("What is\n    loud?", "What is loud?")
    )
    assert (
        len(
            {
                hashed(GOOD),
                hashed(GOOD.replace("quietly", "softly")),
                hashed(GOOD.replace("shorter", "longer")),
            }
        )
        == 3
    )


@pytest.mark.parametrize("name", ["harmless", "helpful_honest"])
def test_shipped_principles_can_do_everything(name: str, tmp_path: Path) -> None:
    found = principles(recipe(tmp_path, name))
    assert name in shipped_constitutions() and 8 <= len(found) <= 16
    for principle in found:
        assert principle.critique and principle.revise and principle.compare
        assert principle.critique.rstrip(".").count("?") or "Point" in principle.critique
        assert principle.compare.endswith(".") and "better" in principle.compare
    assert len({principle.compare for principle in found}) == len(found)


def test_the_constitution_is_copied_with_the_recipe(tmp_path: Path) -> None:
    copies = copy_recipe(shipped()["constitutional"], tmp_path / "mine")
    assert tmp_path / "mine" / "constitutions" / "harmless.yaml" in copies
    assert load_recipe(tmp_path / "mine" / "constitutional.yaml").stages["revised"]


def test_editors_know_what_a_constitution_may_be() -> None:
    schema = json.loads((shipped_folder() / "recipe.schema.json").read_text(encoding="utf-8"))
    text, inline = schema["$defs"]["alignkit_plugins__ai_feedback__revise__Revise__Options"][
        "properties"
    ]["constitution"]["anyOf"]
    assert text == {"type": "string"} and inline["items"]["$ref"] == "#/$defs/Principle"
    assert set(schema["$defs"]["Principle"]["properties"]) == {
        "name",
        "critique",
        "revise",
        "compare",
    }
