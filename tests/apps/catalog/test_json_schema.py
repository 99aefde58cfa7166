"""The JSON schema accepts what `alignkit check` accepts, and catches what an editor can catch."""

import re
from pathlib import Path
from typing import Any

import pytest

from alignkit.plugins import load_plugins
from alignkit.recipe.document import load_document
from alignkit_apps.catalog.json_schema import _canonical, recipe_schema

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))
TYPES = {"string": str, "object": dict, "array": list, "boolean": bool, "null": type(None)}
Schema = dict[str, Any]


@pytest.fixture(scope="module")
def schema() -> Schema:
    return recipe_schema(load_plugins().registry)


def fits(value: Any, schema: Any, root: Schema) -> bool:
    """Whether a value fits a schema: as much of draft 2020-12 as the schema of recipes uses."""
    if "$ref" in schema and not fits(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root):
        return False
    if "anyOf" in schema and not any(fits(value, option, root) for option in schema["anyOf"]):
        return False
    if "if" in schema:
        branch = "then" if fits(value, schema["if"], root) else "else"
        if not fits(value, schema.get(branch, {}), root):
            return False
    if "not" in schema and fits(value, schema["not"], root):
        return False
    if not _type_fits(value, schema) or not _limits_fit(value, schema):
        return False
    if isinstance(value, list) and "items" in schema:
        return all(fits(item, schema["items"], root) for item in value)
    return _object_fits(value, schema, root) if isinstance(value, dict) else True


def _type_fits(value: Any, schema: Schema) -> bool:
    if ("const" in schema and value != schema["const"]) or ("enum" in schema and value not in schema["enum"]):
        return False
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match schema.get("type"):
        case None:
            return True
        case "number":
            return number
        case "integer":
            return number and value == int(value)
        case name:
            return isinstance(value, TYPES[name])


def _limits_fit(value: Any, schema: Schema) -> bool:
    if isinstance(value, str):
        return re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, dict):
        return schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", 1000)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    low, high = schema.get("minimum", value), schema.get("maximum", value)
    above, below = schema.get("exclusiveMinimum", value - 1), schema.get("exclusiveMaximum", value + 1)
    return low <= value <= high and above < value < below


def _object_fits(value: dict[str, Any], schema: Schema, root: Schema) -> bool:
    properties, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
    if not set(schema.get("required", ())) <= value.keys():
        return False
    for key, item in value.items():
        if key in properties:
            if not fits(item, properties[key], root):
                return False
        elif rest is False or (isinstance(rest, dict) and not fits(item, rest, root)):
            return False
    return True


def recipe(**stage: Any) -> dict[str, Any]:
    return {"model": {"base": "tiny"}, "stages": {"only": stage}}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_fits(path: Path, schema: Schema) -> None:
    assert fits(load_document(path).data, schema, schema)


@pytest.mark.parametrize(
    "good",
    [
        recipe(algorithm="sft", data="rows.jsonl", validation={"path": "x", "limit": 3}),
        recipe(algorithm={"ppo": {"clip_range": 0.1}}, reward={"folder": "x"}, rollout={"top_p": 0.9}),
        recipe(algorithm="my-package:ppo", data=["a.jsonl", {"text": {"path": "b", "paragraphs": True}}]),
        recipe(step="instruct", data="rows.jsonl", instruction="be kind"),
        recipe(step={"instruct": {"data": "rows.jsonl", "instruction": "be kind"}}),
        {"model": {"base": "x", "lora": "none"}, "stages": {"b": {"repeat": 2, "stages": {"a": {"algorithm": "sft"}}}}},
        {"extends": "base.yaml", "stages": {"only": {"epochs": 2}}},
    ],
)  # fmt: skip
def test_valid_recipes_fit(good: dict[str, Any], schema: Schema) -> None:
    assert fits(good, schema, schema)


@pytest.mark.parametrize(
    "bad",
    [
        recipe(algorithm="spo", data="x"),
        recipe(algorithm="sft", dta="x"),
        recipe(algorithm="sft", data="x", epochs=0),
        recipe(algorithm={"ppo": {"clip_rnge": 0.1}}),
        recipe(algorithm={"ppo": {"clip_range": -1}}),
        recipe(step="instruct", data="x"),
        {"model": {"base": "tiny", "quantization": "nf5"}, "stages": {"only": {"algorithm": "sft"}}},
        {"model": {"base": "tiny"}},
    ],
)
def test_mistakes_do_not_fit(bad: dict[str, Any], schema: Schema) -> None:
    assert not fits(bad, schema, schema)


def test_keys_are_described(schema: Schema) -> None:
    stage = schema["$defs"]["alignkit.stage"]["anyOf"][0]
    assert stage["properties"]["data"]["$ref"] == "#/$defs/alignkit.data"
    assert stage["properties"]["data"]["description"] and stage["properties"]["max_length"]["description"]


def test_the_text_does_not_depend_on_pydantic() -> None:
    """Some versions write 1.0 for 1 and say that any key is allowed where nothing is said."""
    schema = {"title": "Rate", "minimum": 0.0, "maximum": 0.5, "additionalProperties": True, "default": 1.0}
    properties = {"title": schema, "additionalProperties": {"additionalProperties": False}}
    assert repr(_canonical({"properties": properties, "anyOf": [{"exclusiveMaximum": 1.0}]})) == repr(
        {
            "properties": {
                "title": {"minimum": 0, "maximum": 0.5, "default": 1.0},
                "additionalProperties": {"additionalProperties": False},
            },
            "anyOf": [{"exclusiveMaximum": 1}],
        }
    )
