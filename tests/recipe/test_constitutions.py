"""Constitutions: what a file or a list in a recipe may say, and where a mistake is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit import cli
from alignkit.io.digest import digest
from alignkit.recipe.load import load_recipe
from alignkit.runs.fingerprint import RunData, stage_parts
from alignkit_plugins.ai_feedback.constitution import Principle, shipped_constitutions
from tests.rows import TINY, Said, cells, write_recipe

GOOD = """\
# a comment
- name: calm
  critique: What is
    loud?
  revise: Say it quietly.
- {name: short, compare: The shorter one.}
"""


def recipe(folder: Path, constitution: Any = "own.yaml", text: str = GOOD) -> Path:
    """Two stages with a constitution, by default the file with this text."""
    (folder / "own.yaml").write_text(text, encoding="utf-8")
    revised = {"step": "revise", "prompts": "prompts.jsonl", "constitution": constitution}
    judge = {"step": "judge_pairs", "policy": "base", "judge": "local_judge"}
    return write_recipe(folder, {"revised": revised, "pairs": {**revised, **judge}}, TINY)


def principles(path: Path) -> Any:
    return load_recipe(path).stages["revised"].component.options.constitution  # type: ignore[attr-defined]


def wrong(path: Path, said: Said, *overrides: str) -> str:
    assert cli.main(["check", str(path), *overrides]) == 2
    return " ".join(said().split())


def test_a_file_or_the_recipe_holds_principles_or_names_shipped_ones(tmp_path: Path) -> None:
    """A file is found before a shipped one of the same name."""
    wanted = (
        Principle(name="calm", critique="What is loud?", revise="Say it quietly."),
        Principle(name="short", compare="The shorter one."),
    )
    for constitution in ("own.yaml", yaml.safe_load(GOOD)):
        assert principles(recipe(tmp_path, constitution)) == wanted
    assert len(principles(recipe(tmp_path, "harmless"))) == 16
    (tmp_path / "harmless").write_text(GOOD, encoding="utf-8")
    assert principles(recipe(tmp_path, "harmless")) == wanted


# What the file says instead of what, and the line and the words of the mistake
MISTAKES = r"""
critique: | criticize: | 3 | unknown key 'criticize'
\n  revise: Say it quietly. | | 2 | 'revise' is missing
calm | short | 6 | the name 'short' is used twice
, compare: The shorter one. | | 6 | needs 'critique' and 'revise', or 'compare'
calm | '' | 2 | name
Say it quietly. | ' ' | 5 | is empty
Say it quietly. | [a] | 5 | must be a valid string
one.} | one.}\n- just text | 7 | must be an object
one.} | one.}\n  oops | 7 | not valid YAML
one.} | one.}\n- {name: calm, name: calm, compare: c} | 7 | duplicate key 'name'
"""


@pytest.mark.parametrize(("old", "new", "line", "message"), cells(MISTAKES))
def test_a_mistake_in_a_file_is_shown_once_where_it_is(
    old: str, new: str, line: str, message: str, tmp_path: Path, said: Said
) -> None:
    old, new = (text.replace("\\n", "\n") for text in (old, new))
    told = wrong(recipe(tmp_path, text=GOOD.replace(old, new)), said)
    assert message in told and f"--> {tmp_path / 'own.yaml'}:{line}:" in told
    assert told.count("error: ") == 1


def test_an_override_starts_at_the_current_folder(
    tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = recipe(tmp_path, "harmless")
    missing = f"no such constitution: {tmp_path / 'here' / 'own.yaml'}"
    assert missing in wrong(path, said, "stages.revised.constitution=own.yaml")
    found = load_recipe(path, [f"stages.revised.constitution={tmp_path / 'own.yaml'}"])
    assert len(found.stages["revised"].component.options.constitution) == 2  # type: ignore[attr-defined]


NONE = yaml.safe_load("""
- [harmles, "did you mean 'harmless'?"]
- [my.yaml, "shipped constitutions: harmless, helpful_honest"]
- [., "cannot read the file: is a directory"]
- [{calm: no}, must be a valid array]
- [[], must have at least 1 item]
""")


@pytest.mark.parametrize(("named", "message"), NONE)
def test_what_is_no_constitution(named: Any, message: str, tmp_path: Path, said: Said) -> None:
    assert message in wrong(recipe(tmp_path, named), said)


def test_another_constitution_is_another_stage(tmp_path: Path) -> None:
    """A comment or a line break changes nothing, and a word does."""
    hashes = []
    same = GOOD.replace("a comment", "another").replace("What is\n    loud?", "What is loud?")
    others = (GOOD.replace("quietly", "softly"), GOOD.replace("shorter", "longer"))
    for text in (GOOD, same, *others):
        loaded = load_recipe(recipe(tmp_path, text=text))
        stage = stage_parts(loaded.stages["revised"], loaded, "base", {}, RunData(Path))
        hashes.append(digest(stage))
    assert hashes[0] == hashes[1] and len({*hashes}) == 3


@pytest.mark.parametrize("name", shipped_constitutions())
def test_shipped_principles_can_do_everything(name: str, tmp_path: Path) -> None:
    found = principles(recipe(tmp_path, name))
    for principle in found:
        assert principle.critique and principle.revise and "better" in principle.compare
    assert len({principle.compare for principle in found}) == len(found) >= 8
