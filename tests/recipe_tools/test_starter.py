"""`alignkit init FOLDER`: the example runs at once, replaces no file, and editors know its keys."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
import yaml

from alignkit.cli import main
from alignkit.recipe.load import load_recipe
from alignkit.recipe.sources import DataSpec
from alignkit.recipe.yaml import shipped_folder
from alignkit_plugins.recipe_tools.init import STARTER
from alignkit_plugins.recipe_tools.options import SCHEMA
from tests.rows import Said

KINDS = ("demos", "pairs", "prompts")


def test_the_example_runs_at_once(tmp_path: Path, printed: Said) -> None:
    folder = tmp_path / "my first {project}: yes"
    assert main(["init", str(folder)]) == 0
    lines = printed().splitlines()
    assert lines[-1] == f"next: alignkit run {folder / 'recipe.yaml'}" and len(lines) == 5
    assert main(["run", str(folder / "recipe.yaml"), "--out", str(tmp_path / "run")]) == 0
    made = sorted(path.parent.name for path in (tmp_path / "run").glob("*/adapter"))
    assert made == ["align", "reward", "sft"]
    assert (tmp_path / "run" / "report" / "evaluation.json").is_file()


def test_the_example_is_what_init_writes_for_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for its size, what it says of itself, and a report by fewer examples than say anything."""
    assert main(["init", str(tmp_path)]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["init", "own", "--base", "tiny", *(f"data/{kind}.jsonl" for kind in KINDS)]) == 0
    assert main(["check", "own/recipe.yaml"]) == 0
    example, own = (load_recipe(Path(path)) for path in ("recipe.yaml", "own/recipe.yaml"))
    assert [*example.stages] == [*own.stages, "report"]
    assert example.resolved["model"]["base"] == own.resolved["model"]["base"]
    for name in ("sft", "reward", "align"):
        one, other = example.stages[name], own.stages[name]
        assert one.component == other.component and one.settings and other.settings
        for read, others in (
            (one.settings.data, other.settings.data),
            (one.settings.prompts, other.settings.prompts),
        ):
            assert paths(read) == paths(others)


def paths(spec: DataSpec | None) -> list[Path | None]:
    return [source.path for source in spec.sources] if spec else []


def test_a_path_starts_at_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder may be called like a kind of data."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_bytes((STARTER.parent / "data" / "demos.jsonl").read_bytes())
    assert main(["init", "demos", "demos=rows.jsonl"]) == 0
    text = Path("demos/recipe.yaml").read_text(encoding="utf-8")
    assert "    data: ../rows.jsonl\n" in text


def test_no_file_is_replaced(tmp_path: Path, said: Said) -> None:
    mine = tmp_path / "data" / "pairs.jsonl"
    mine.parent.mkdir()
    mine.write_text("mine", encoding="utf-8")
    assert main(["init", str(tmp_path)]) == 2
    assert str(mine) in said()
    assert [*tmp_path.rglob("*.*")] == [mine] and mine.read_text(encoding="utf-8") == "mine"


PLUGIN = """\
from alignkit import *


class Calm(Reward):
    def score(self, groups):
        return []


@hookimpl
def register(add):
    add('reward', 'calm', Calm)
"""


def test_the_first_line_names_a_schema_that_accepts_the_recipe_and_knows_the_plugins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jsonschema_rs = pytest.importorskip("jsonschema_rs")
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "a cache"))
    (tmp_path / "plugin.py").write_text(PLUGIN, encoding="utf-8")
    shipped = json.loads((shipped_folder() / SCHEMA).read_text(encoding="utf-8"))
    for name, more in (("new", ["--plugin", str(tmp_path / "plugin.py")]), ("other", [])):
        assert main(["init", str(tmp_path / name), *more]) == 0
        text = (tmp_path / name / "recipe.yaml").read_text(encoding="utf-8")
        uri = text.partition("\n")[0].removeprefix("# yaml-language-server: $schema=")
        schema = json.loads(Path(url2pathname(urlsplit(uri).path)).read_text(encoding="utf-8"))
        assert jsonschema_rs.is_valid(schema, yaml.safe_load(text))
        assert ("calm" in json.dumps(schema)) == bool(more) == (schema != shipped)
