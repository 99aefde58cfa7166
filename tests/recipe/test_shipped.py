"""Shipped recipes are found, listed and extended by name, from any folder."""

import re
from pathlib import Path

import pytest

from alignkit.errors import RecipeError
from alignkit.recipe.load import load_recipe
from alignkit.recipe.yaml import find_recipe, shipped

pytestmark = pytest.mark.usefixtures("here")  # and not the folder of the shipped recipes


def test_a_shipped_recipe_has_several_names_but_a_file_comes_first(here: Path) -> None:
    for name in ("smoke", "recipes/smoke.yaml", "smoke.yaml"):
        assert find_recipe(name) == shipped()["smoke"]
    (here / "smoke.yaml").write_text("", encoding="utf-8")
    assert find_recipe("smoke.yaml") == Path("smoke.yaml")
    assert find_recipe("smoke") == shipped()["smoke"]
    with pytest.raises(RecipeError, match="did you mean 'quickstart'"):
        find_recipe("quikstart")
    with pytest.raises(RecipeError, match=r"no such recipe: nowhere.yaml\n  help: shipped recipes"):
        find_recipe("nowhere.yaml")


# What papers say of a stage, or a recipe of itself
CLAIMS = """\
llama2.rs2.replay_from              ['rs1']
llama2.rs3.replay_from              ['rs1', 'rs2']
llama2.helpful.algorithm            {'reward_model': {'margin': 'llama2-small'}}
iterated.helpful_3.data             [.*, 'labels_1', 'labels_2', 'labels_3']
iterated.align_3.from               align_2
iterated.align_3.reference          sft
iterated.align_3.reward             helpful_3
people.helpful_5.data               [.*, 'labels_1', 'labels_2', 'labels_3', 'labels_4', 'labels_5']
people.labels_2.data                ['cool_2', 'warm_2']
constitutional.sl_cai.data          ['revised', '.*demos.jsonl']
constitutional.labels.judge         {'reward_judge': {'reward_model': 'safety'}}
constitutional.harmless.data        labels
instructgpt.chosen.policies         ['sft@1', 'sft@2']
instructgpt.align.from              chosen
instructgpt.align.mix               {.*'objective': 'text'.*}
rlaif.by_safety.judge               {'reward_judge': {'reward_model': 'safety'}}
rlaif.rlaif.data                    ['by_helpful', 'by_safety']
rlaif.report.policies               ['sft', 'rlhf', 'rlaif']
"""


def test_shipped_recipes_do_what_they_say() -> None:
    stages = {name: load_recipe(path).resolved["stages"] for name, path in shipped().items()}
    for line in CLAIMS.splitlines():
        place, claim = line.split(maxsplit=1)
        recipe, stage, key = place.split(".")
        found = str(stages[recipe][stage][key])
        assert re.fullmatch(re.escape(claim).replace(r"\.\*", ".*"), found), (place, found)


def test_a_recipe_extends_a_shipped_one(here: Path) -> None:
    recipe = here / "mine.yaml"
    recipe.write_text("extends: smoke\nstages: {sft: {epochs: 3}}\n", encoding="utf-8")
    loaded = load_recipe(recipe)
    assert loaded.stages["sft"].settings and loaded.stages["sft"].settings.epochs == 3
    for name, said in (("smok", "did you mean 'smoke'"), ("nowhere", "shipped recipes: ")):
        recipe.write_text(f"extends: {name}\n", encoding="utf-8")
        with pytest.raises(RecipeError, match=f"no such recipe: {name}\n(.*\n)*.*{said}"):
            load_recipe(recipe)


def test_a_path_of_an_override_starts_where_it_is_typed(here: Path) -> None:
    (here / "data").mkdir()
    mine = here / "data" / "demos.jsonl"
    mine.write_text('{"prompt": "1", "completion": "2"}\n', encoding="utf-8")
    loaded = load_recipe(find_recipe("smoke"), ["stages.sft.data=data/demos.jsonl"])
    settings = loaded.stages["sft"].settings
    assert settings and settings.data and Path(settings.data.sources[0].path) == mine
    assert loaded.resolved["stages"]["sft"]["data"] == str(mine)
    missing = here / "data" / "prompts.jsonl"  # and not the one next to the recipe
    with pytest.raises(RecipeError, match=f"no such file: {missing}"):
        load_recipe(find_recipe("smoke"), ["stages.align.prompts=data/prompts.jsonl"])


def test_a_recipe_next_to_a_wrong_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "support.yaml").touch()
    for name in ("support.yml", "suport.yaml"):
        with pytest.raises(RecipeError, match=r"did you mean '.*support\.yaml'"):
            find_recipe(name, tmp_path)
