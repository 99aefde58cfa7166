"""`alignkit init FOLDER`: the example runs at once, replaces no file, and editors know its keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
import yaml

from alignkit.cli import main
from alignkit.recipe.load import load_recipe
from alignkit.recipe.yaml import SCHEMA, shipped_folder
from alignkit_plugins.recipes.init_write import STARTER

KINDS = ("demos", "pairs", "prompts")
DATA = STARTER.parent / "data"


def test_the_example_runs_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "my first {project}: yes"
    assert main(["init", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"next: alignkit run {folder / 'recipe.yaml'}" and len(lines) == 5
    assert main(["run", str(folder / "recipe.yaml"), "--out", str(tmp_path / "run")]) == 0
    made = sorted(path.parent.name for path in (tmp_path / "run").glob("*/adapter"))
    assert made == ["align", "reward", "sft"]
    assert (tmp_path / "run" / "report" / "evaluation.json").is_file()


def test_the_example_is_what_init_writes_for_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for its size, and what it says of itself."""
    assert main(["init", str(tmp_path / "example")]) == 0
    monkeypatch.chdir(tmp_path / "example")
    assert main(["init", "own", "--base", "tiny", *(f"data/{kind}.jsonl" for kind in KINDS)]) == 0
    assert main(["check", "own/recipe.yaml"]) == 0
    example, own = (load_recipe(Path(path)) for path in ("recipe.yaml", "own/recipe.yaml"))
    assert [*example.stages] == [*own.stages]
    assert example.resolved["model"]["base"] == own.resolved["model"]["base"]
    for name, stage in example.stages.items():
        theirs = own.stages[name]
        assert stage.component == theirs.component or name == "report"
        if stage.settings is not None and theirs.settings is not None:
            assert stage.settings.data == theirs.settings.data
            assert stage.settings.prompts == theirs.settings.prompts


@pytest.mark.parametrize(
    ("folder", "written"),
    [("demos", "../rows.jsonl"), (".", "rows.jsonl"), ("a/b", "../../rows.jsonl")],
)
def test_a_path_starts_at_the_recipe(
    folder: str, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder may be called like a kind of data."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_bytes((DATA / "demos.jsonl").read_bytes())
    assert main(["init", folder, "demos=rows.jsonl"]) == 0
    text = (Path(folder) / "recipe.yaml").read_text(encoding="utf-8")
    assert f"    data: {{path: {written}, part: [0.2, 1]}}\n" in text


@pytest.mark.parametrize("name", ["recipe.yaml", "data/pairs.jsonl"])
def test_no_file_is_replaced(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    assert main(["init", str(tmp_path)]) == 2
    assert str(tmp_path / name) in capsys.readouterr().err
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine"
    assert sorted(tmp_path.rglob("*")) == before


def schema_of(recipe: Path) -> dict[str, Any]:
    """The schema that the first line of a recipe names."""
    line = recipe.read_text(encoding="utf-8").partition("\n")[0]
    uri = line.removeprefix("# yaml-language-server: $schema=")
    text = Path(url2pathname(urlsplit(uri).path)).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def test_the_first_line_names_a_schema_that_accepts_the_recipe(tmp_path: Path) -> None:
    jsonschema_rs = pytest.importorskip("jsonschema_rs")
    assert main(["init", str(tmp_path / "new")]) == 0
    recipe = tmp_path / "new" / "recipe.yaml"
    schema = schema_of(recipe)
    assert schema == json.loads((shipped_folder() / SCHEMA).read_text(encoding="utf-8"))
    assert jsonschema_rs.is_valid(schema, yaml.safe_load(recipe.read_text(encoding="utf-8")))


PLUGIN = """\
from alignkit import *


class Calm(Reward):
    def score(self, groups):
        return {}


@hookimpl
def register(add):
    add('reward', 'calm', Calm)
"""


def test_the_schema_knows_the_plugins_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "a cache"))
    (tmp_path / "plugin.py").write_text(PLUGIN, encoding="utf-8")
    for name, more in (("new", ["--plugin", str(tmp_path / "plugin.py")]), ("other", [])):
        assert main(["init", str(tmp_path / name), *more]) == 0
        schema = json.dumps(schema_of(tmp_path / name / "recipe.yaml"))
        assert ("calm" in schema) == bool(more)
