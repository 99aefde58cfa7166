"""Shipped recipes are found, listed and extended by name, from any folder."""

from pathlib import Path

import pytest

from alignkit.errors import RecipeError
from alignkit.recipe.load import load_recipe
from alignkit.recipe.yaml import find_recipe, shipped


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["smoke", "recipes/smoke.yaml", "smoke.yaml"])
def test_every_way_to_name_a_shipped_recipe(name: str) -> None:
    assert find_recipe(name) == shipped()["smoke"]


def test_a_file_comes_before_a_shipped_recipe(elsewhere: Path) -> None:
    (elsewhere / "smoke.yaml").write_text("", encoding="utf-8")
    assert find_recipe("smoke.yaml") == Path("smoke.yaml")
    assert find_recipe("smoke") == shipped()["smoke"]


def test_the_nearest_name_is_given(elsewhere: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'quickstart'"):
        find_recipe("quikstart")
    with pytest.raises(RecipeError, match=r"no such recipe: nowhere.yaml\n  help: shipped recipes"):
        find_recipe("nowhere.yaml")


def test_a_recipe_extends_a_shipped_one(elsewhere: Path) -> None:
    recipe = elsewhere / "mine.yaml"
    recipe.write_text("extends: smoke\nstages: {sft: {epochs: 3}}\n", encoding="utf-8")
    loaded = load_recipe(recipe)
    assert loaded.stages["sft"].settings and loaded.stages["sft"].settings.epochs == 3
    recipe.write_text("extends: smok\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="did you mean 'smoke'"):
        load_recipe(recipe)
    recipe.write_text("extends: nowhere\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"no such recipe: nowhere\n(.*\n)*.*shipped recipes: "):
        load_recipe(recipe)


def test_a_path_of_an_override_starts_where_it_is_typed(elsewhere: Path) -> None:
    (elsewhere / "data").mkdir()
    mine = elsewhere / "data" / "demos.jsonl"
    mine.write_text('{"prompt": "1", "completion": "2"}\n', encoding="utf-8")
    loaded = load_recipe(find_recipe("smoke"), ["stages.sft.data=data/demos.jsonl"])
    settings = loaded.stages["sft"].settings
    assert settings and settings.data and Path(settings.data.sources[0].path) == mine
    assert loaded.resolved["stages"]["sft"]["data"] == str(mine)
    missing = elsewhere / "data" / "prompts.jsonl"  # and not the one next to the recipe
    with pytest.raises(RecipeError, match=f"no such file: {missing}"):
        load_recipe(find_recipe("smoke"), ["stages.align.prompts=data/prompts.jsonl"])
