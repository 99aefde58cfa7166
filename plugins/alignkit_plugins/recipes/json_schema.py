"""The JSON schema of recipes, for editors: the keys, types, ranges and descriptions of everything
that is installed.

It accepts every valid recipe and catches misspelled keys and values. `alignkit check` also checks
whether stages exist and whether keys are compatible.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from alignkit.data.sources import DataSource
from alignkit.engine import LOCAL
from alignkit.io.atomic import write_text
from alignkit.io.digest import digest
from alignkit.io.text import cache_folder
from alignkit.recipe.references import options_of
from alignkit.recipe.schema import BlockKeys, TopKeys
from alignkit.recipe.yaml import SCHEMA, SCHEMA_LINE, shipped_folder
from alignkit.registry import KINDS, Registry
from alignkit.settings import ModelSpec, Settings

Schema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
TEXT: Schema = {"type": "string"}
_CORE: tuple[type[BaseModel], ...] = (TopKeys, BlockKeys, DataSource, ModelSpec, Settings)
# Kinds of plugins with a class `Options`.
_OTHERS = ("model", "optimizer", "schedule", "template", "reader", "launcher")
_KINDS = tuple(kind for kind in KINDS if kind not in _OTHERS)


def recipe_schema(registry: Registry) -> Schema:
    """The schema of a recipe file that may use every plugin of the registry."""
    schema: Schema = _canonical(_Builder(registry).recipe())
    return {"title": "alignkit recipe", **schema}


def schema_text(registry: Registry) -> str:
    """The same as the text of a file."""
    return json.dumps(recipe_schema(registry), indent=1, ensure_ascii=False) + "\n"


def schema_line(registry: Registry) -> str:
    """The first line of a recipe, with which editors complete and check keys.

    It names alignkit's own schema, or one in the cache if plugins of others are installed, too.
    """
    file, text = shipped_folder() / SCHEMA, schema_text(registry)
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        file = cache_folder() / "schemas" / f"{digest(sys.prefix)}.json"
        write_text(file, text)
    return SCHEMA_LINE.replace(SCHEMA, file.resolve().as_uri())


class _Builder:
    """Combines pydantic's schemas of the models with the schemas of references, components and
    stages.
    """

    def __init__(self, registry: Registry):
        self._options: dict[str, dict[str, Any]] = {}
        for kind in _KINDS:
            usable = registry.usable(kind)
            items = [item for item in registry.registrations(kind) if item.name in usable]
            self._options[kind] = {item.name: options_of(item) for item in items}
        options = [model for models in self._options.values() for model in models.values()]
        models = list(dict.fromkeys([*_CORE, *options]))
        refs, shared = models_json_schema(
            [(model, "validation") for model in models], ref_template="#/$defs/{model}"
        )
        self._open: dict[type[BaseModel], Schema] = {
            model: refs[model, "validation"] for model in models
        }
        free = [model for model in models if model.model_config.get("extra") == "allow"]
        self._refs = {
            model: ref if model in free else _closed(ref) for model, ref in self._open.items()
        }
        self._defs: dict[str, Schema] = _with_references(shared["$defs"])
        for ref in self._open.values():  # others add keys of their own
            self._defs[ref["$ref"].removeprefix("#/$defs/")].pop("additionalProperties", None)

    def recipe(self) -> Schema:
        """The schema of the top level. A file that extends another one may leave out anything."""
        top = self._schema(TopKeys)
        trackers = {"type": "array", "items": self._component("tracker")}
        top["properties"] |= {"model": {"type": "object"}, "stages": {"type": "object"}}
        top["properties"]["trackers"] |= trackers
        lora = self._schema(ModelSpec)["properties"]["lora"]
        lora["anyOf"] = [*lora["anyOf"], {"const": "none"}]
        stages: Schema = {"type": "object", "additionalProperties": _ref("stage_or_block")}
        return {
            "$schema": DIALECT,
            "type": "object",
            **self._refs[TopKeys],
            "if": {"not": {"required": ["extends"]}},
            "then": {
                "required": top.pop("required"),
                "properties": {"model": self._refs[ModelSpec], "stages": stages},
            },
            "$defs": {**self._defs, **self._shapes()},
        }

    def _shapes(self) -> dict[str, Schema]:
        """The schemas of values that the models type as `Any`, by the names that `_ref` takes."""
        block = self._schema(BlockKeys)
        block["properties"]["stages"] = {"type": "object", "additionalProperties": _ref("stage")}
        source = _ref("source")
        shapes = {
            "source": _any_of([TEXT, self._refs[DataSource], *self._formats()]),
            "data": _any_of([source, {"type": "array", "items": source}]),
            "reward": _any_of(
                [TEXT, _object({"folder": TEXT}, ["folder"]), self._component("reward")]
            ),
            "judge": self._component("judge"),
            "filter": self._component("filter"),
            "monitor": self._component("monitor"),
            "environment": self._component("environment"),
            "engine": _any_of([{"const": LOCAL}, self._component("engine")]),
            "stage": _any_of([self._training_stage(), *self._steps()]),
            "stage_or_block": _any_of([_ref("stage"), self._refs[BlockKeys]]),
            "elsewhere": {"properties": {"engine": _ref("engine")}},
            # Those of libraries count, too, and have other names in other versions.
            **dict.fromkeys(
                ("optimizer", "schedule"), _any_of([TEXT, {"type": "object", "maxProperties": 1}])
            ),
            **dict.fromkeys(("stage_name", "policy", "from", "reward_stage"), TEXT),
        }
        return {f"alignkit.{name}": shape for name, shape in shapes.items()}

    def _component(self, kind: str) -> Schema:
        """`NAME`, `PACKAGE:NAME` or `NAME: {options}`."""
        options = {name: self._refs[model] for name, model in self._options[kind].items()}
        with_options = {**_object(options), "minProperties": 1, "maxProperties": 1}
        return _any_of([{"enum": sorted(options)}, {**TEXT, "pattern": ":"}, with_options])

    def _formats(self) -> Iterable[Schema]:
        """`FORMAT: PATH` or `FORMAT: {path: PATH, option: ...}`."""
        common = self._open[DataSource]
        for name, model in self._options["format"].items():
            options = self._open[model]
            has_options = bool(self._schema(model).get("properties"))
            both = _closed({"allOf": [common, options]}) if has_options else self._refs[DataSource]
            yield _object({name: _any_of([TEXT, both])}, [name])

    def _training_stage(self) -> Schema:
        return _closed(
            {
                **self._open[Settings],
                **_keys({"algorithm": self._component("algorithm")}, ["algorithm"]),
            }
        )

    def _steps(self) -> Iterable[Schema]:
        """`step: NAME` with its options next to it, or `PACKAGE:NAME`."""
        for name, model in self._options["step"].items():
            yield _closed(
                {
                    "allOf": [self._open[model], _ref("elsewhere")],
                    **_keys({"step": {"const": name}}, ["step"]),
                }
            )
        yield _closed({**_ref("elsewhere"), **_keys({"step": {**TEXT, "pattern": ":"}}, ["step"])})

    def _schema(self, model: type[BaseModel]) -> Schema:
        return self._defs[self._open[model]["$ref"].removeprefix("#/$defs/")]


# Of references (`alignkit.options.Ref`), those whose shapes have other names.
_NAMES = {"stage": "stage_name", "training_data": "data"}


def _with_references(value: Any) -> Any:
    """The schema with every marked reference (see `Ref`) replaced by the schema of its kind."""
    if isinstance(value, dict):
        if kind := value.get("x-alignkit"):
            others = {key: item for key, item in value.items() if key != "x-alignkit"}
            return {**others, **_ref(_NAMES.get(str(kind), str(kind)))}
        return {key: _with_references(item) for key, item in value.items()}
    return [_with_references(item) for item in value] if isinstance(value, list) else value


# Keys whose values are data of a recipe, not schemas.
_VALUES = ("default", "const", "enum")


def _canonical(value: Any) -> Any:
    """The schema as every version of pydantic would write it: without titles made from names, and
    1.0 as 1.
    """
    if isinstance(value, dict):
        return {
            key: item if key in _VALUES else _canonical(item)
            for key, item in value.items()
            if not (key == "title" and isinstance(item, str))
            and not (key == "additionalProperties" and item is True)
        }
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/alignkit.{name}"}


def _any_of(schemas: Iterable[Schema]) -> Schema:
    return {"anyOf": list(schemas)}


def _closed(schema: Schema) -> Schema:
    """The schema without other keys than those of all its parts."""
    return {**schema, "unevaluatedProperties": False}


def _keys(properties: Mapping[str, Schema], required: Iterable[str]) -> Schema:
    return {"type": "object", "properties": dict(properties), "required": list(required)}


def _object(properties: Mapping[str, Schema], required: Iterable[str] = ()) -> Schema:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }
