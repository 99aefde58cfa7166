"""The JSON schema accepts what `alignkit check` accepts, and catches what an editor can catch."""

from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from alignkit.plugins import load_plugins
from alignkit.recipe.yaml import load_document
from alignkit_plugins.recipes.options import recipe_schema

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
Schema = dict[str, Any]


@pytest.fixture(scope="module")
def schema() -> Schema:
    return recipe_schema(load_plugins())


def fits(value: Any, schema: Schema) -> bool:
    return bool(jsonschema_rs.Draft202012Validator(schema).is_valid(value))


def recipe(**stage: Any) -> dict[str, Any]:
    return {"model": {"base": "tiny"}, "stages": {"only": stage}}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_fits(path: Path, schema: Schema) -> None:
    assert fits(load_document(path).data, schema)


@pytest.mark.parametrize(
    "good",
    [
        recipe(algorithm="sft", data="rows.jsonl", validation={"path": "x", "limit": 3}),
        recipe(algorithm={"ppo": {"clip_range": 0.1}}, reward={"folder": "x"}, rollout={"top_p": 0.9}),
        recipe(algorithm="my-package:ppo", data=["a.jsonl", {"text": {"path": "b", "paragraphs": True}}]),
        recipe(step="instruct", data="rows.jsonl", instruction="be kind"),
        {"model": {"base": "x", "lora": "none"}, "stages": {"b": {"repeat": 2, "stages": {"a": {"algorithm": "sft"}}}}},
        {"extends": "base.yaml", "stages": {"only": {"epochs": 2}}},
    ],
)  # fmt: skip
def test_valid_recipes_fit(good: dict[str, Any], schema: Schema) -> None:
    assert fits(good, schema)


@pytest.mark.parametrize(
    "bad",
    [
        recipe(algorithm="spo", data="x"),
        recipe(algorithm="sft", dta="x"),
        recipe(algorithm="sft", data="x", epochs=0),
        recipe(algorithm={"ppo": {"clip_rnge": 0.1}}),
        recipe(algorithm={"ppo": {"clip_range": -1}}),
        recipe(step="instruct", data="x"),
        {
            "model": {"base": "tiny", "quantization": "nf5"},
            "stages": {"only": {"algorithm": "sft"}},
        },
        {"model": {"base": "tiny"}},
    ],
)
def test_mistakes_do_not_fit(bad: dict[str, Any], schema: Schema) -> None:
    assert not fits(bad, schema)


def test_keys_are_described(schema: Schema) -> None:
    stage = schema["$defs"]["Settings"]
    assert stage["properties"]["data"]["$ref"] == "#/$defs/alignkit.data"
    assert (
        stage["properties"]["data"]["description"]
        and stage["properties"]["max_length"]["description"]
    )
