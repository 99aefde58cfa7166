"""The options of everything that is installed, from the JSON schemas of their models: as rows of
text, for `alignkit plugins NAME` and tables in the docs, and as the schema of recipes, for editors.

The schema accepts every valid recipe and catches misspelled keys and values. `alignkit check` also
checks whether stages exist and whether keys are compatible.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from alignkit.contract.algorithm import Algorithm, StageDefaults
from alignkit.contract.engine import LOCAL
from alignkit.contract.settings import ModelSpec, Settings
from alignkit.host.registry import KINDS, Registry
from alignkit.io.atomic import write_text
from alignkit.io.digest import digest
from alignkit.io.text import cache_folder
from alignkit.recipe.references import options_of
from alignkit.recipe.schema import TopKeys
from alignkit.recipe.sources import DataSource
from alignkit.recipe.yaml import shipped_folder
from alignkit_plugins.recipe_tools.blocks import BlockKeys

Schema = dict[str, Any]
SCHEMA = "recipe.schema.json"  # next to the shipped recipes
SCHEMA_LINE = f"# yaml-language-server: $schema={SCHEMA}"  # lets editors complete and check keys

# Rows of text

LONGEST_DEFAULT = 60  # characters; a longer default is a built-in text, such as a judge's question
# References (`alignkit.contract.options.Ref`) that are not called what they are
_REFERENCES = {
    "policy": "stage",
    "reward_stage": "stage",
    "from": "stage or folder",
    "training_data": "data",
}
_TYPES = {"string": "text", "boolean": "boolean", "object": "mapping"}
_PLURALS = ("text", "integer", "number", "stage", "reward", "filter", "monitor")
_LIMITS = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
}


@dataclass(frozen=True)
class OptionRow:
    """One option in readable form. type: without null, if that is the default. range: `> 0`, `0 to 1`
    or empty.
    """

    name: str
    type: str
    range: str
    default: str
    description: str

    @property
    def type_and_range(self) -> str:
        """`number, 0 to 1`."""
        return ", ".join(filter(None, [self.type, self.range]))


def option_rows(model: type[BaseModel]) -> list[OptionRow]:
    """The options of a model by the names that a recipe uses: those that it declares itself
    first.
    """
    schema, declared = model.model_json_schema(), inspect.get_annotations(model)
    names = {info.alias or name: name in declared for name, info in model.model_fields.items()}
    rows = list[OptionRow]()
    for name in sorted(names, key=lambda name: not names[name]):
        option = schema["properties"][name]
        default = _default(option, name in schema.get("required", ()))
        types = [each for each in option.get("anyOf", ()) if each.get("type") != "null"]
        text = _type({**option, "anyOf": types} if types and default == "null" else option)
        description = " ".join(option.get("description", "").split())
        rows.append(OptionRow(name, text, _range(option), default, description))
    return rows


def stage_defaults(algorithm: type[Algorithm]) -> dict[str, str]:
    """The stage-level defaults that an algorithm sets, as a recipe writes them."""
    found = dict[str, str]()
    for field in fields(StageDefaults):
        value = getattr(algorithm.defaults, field.name)
        if value not in (None, {}):
            found[field.name] = value_text(value)
    return found


def value_text(value: Any) -> str:
    """A value as written in a recipe: `true`, `null`, `1e-5`, `[0.5, 0.7]`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value).replace("e-0", "e-")
    if isinstance(value, list | tuple) and value:
        return f"[{', '.join(map(value_text, value))}]"
    if isinstance(value, Mapping) and value:
        items = [f"{key}: {value_text(one)}" for key, one in value.items()]
        return f"{{{', '.join(items)}}}"
    if value in ("", [], {}, ()):
        return "empty"
    return str(value)


def _default(option: Mapping[str, Any], required: bool) -> str:
    if required:
        return "required"
    value = option.get("default", "")
    if "$ref" in option or (isinstance(value, Mapping) and value):
        return "its own defaults"
    text = value_text(value)
    if len(text) > LONGEST_DEFAULT or "\n" in text:
        return "built-in"
    return text


def _one_of(texts: Sequence[str]) -> str:
    """`stage, folder or null`."""
    *parts, last = dict.fromkeys(" or ".join(texts).split(" or "))
    if not parts:
        return last
    return f"{', '.join(parts)} or {last}"


def _type(option: Mapping[str, Any]) -> str:
    """The type that a schema allows, in words."""
    if kind := option.get("x-alignkit"):
        return _REFERENCES.get(kind, kind)
    if "anyOf" in option:
        return _one_of(list(map(_type, option["anyOf"])))
    if "const" in option or "enum" in option:
        return " | ".join(map(value_text, option.get("enum") or [option["const"]]))
    if "$ref" in option:
        return "mapping"
    if option.get("format") == "path":
        return "file"
    kind = option.get("type", "any value")
    if kind == "array":
        parts = option.get("prefixItems", [])
        each = _type([*parts, option.get("items", {})][0])
        plural = each + "s" * (each in _PLURALS)
        return f"{len(parts) or 'list of'} {plural}"
    return _TYPES.get(kind, kind)


def _range(option: Mapping[str, Any]) -> str:
    """The limits of a number, or of the only one of several types that is one."""
    for each in (option, *option.get("anyOf", ())):
        limits = {key: value_text(each[key]) for key in _LIMITS if key in each}
        if limits.keys() == {"minimum", "maximum"}:
            return f"{limits['minimum']} to {limits['maximum']}"
        if limits:
            return " and ".join(f"{_LIMITS[key]} {limit}" for key, limit in limits.items())
    return ""


# The schema of recipes

DIALECT = "https://json-schema.org/draft/2020-12/schema"
DEFINITIONS = "#/$defs/"
TEXT: Schema = {"type": "string"}
QUALIFIED: Schema = {"type": "string", "pattern": ":"}  # PACKAGE:NAME
_CORE: tuple[type[BaseModel], ...] = (TopKeys, BlockKeys, DataSource, ModelSpec, Settings)
# Kinds of plugins without a class `Options`
_OTHERS = ("model", "optimizer", "schedule", "template", "reader", "launcher")
# References whose shapes have other names
_NAMES = {"stage": "stage_name", "training_data": "data"}


def recipe_schema(registry: Registry) -> Schema:
    """The schema of a recipe file that may use every plugin of the registry."""
    return {"title": "alignkit recipe", **_finished(_Builder(registry).recipe())}


def schema_text(registry: Registry) -> str:
    """The same as the text of a file."""
    return json.dumps(recipe_schema(registry), indent=1, ensure_ascii=False) + "\n"


def schema_line(registry: Registry) -> str:
    """The first line of a recipe, with which editors complete and check keys.

    It names alignkit's own schema, or one in the cache if plugins of others are installed, too.
    """
    file, text = shipped_folder() / SCHEMA, schema_text(registry)
    if not file.is_file() or file.read_text("utf-8") != text:
        file = cache_folder() / "schemas" / f"{digest(sys.prefix)}.json"
        write_text(file, text)
    return SCHEMA_LINE.replace(SCHEMA, file.resolve().as_uri())


class _Builder:
    """Combines pydantic's schemas of the models with the schemas of references, components and
    stages.
    """

    def __init__(self, registry: Registry):
        self._options = dict[str, dict[str, Any]]()
        models = dict.fromkeys(_CORE)
        for kind in KINDS:
            if kind not in _OTHERS:
                self._options[kind] = {}
                usable = registry.usable(kind)
                for item in registry.registrations(kind):
                    if item.name in usable:
                        self._options[kind][item.name] = options_of(item)
                models |= dict.fromkeys(self._options[kind].values())
        refs, shared = models_json_schema(
            [(model, "validation") for model in models], ref_template=f"{DEFINITIONS}{{model}}"
        )
        self._open = {model: refs[model, "validation"] for model in models}
        self._defs: dict[str, Schema] = shared["$defs"]
        for model in models:  # others add keys of their own
            self._schema(model).pop("additionalProperties", None)

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
            **self._ref_of(TopKeys),
            "if": {"not": {"required": ["extends"]}},
            "then": {
                "required": top.pop("required"),
                "properties": {"model": self._ref_of(ModelSpec), "stages": stages},
            },
            "$defs": {**self._defs, **self._shapes()},
        }

    def _shapes(self) -> dict[str, Schema]:
        """The schemas of values that the models type as `Any`, by the names that `_ref` takes."""
        block = self._schema(BlockKeys)
        block["properties"]["stages"] = {"type": "object", "additionalProperties": _ref("stage")}
        source, folder = _ref("source"), _object({"folder": TEXT}, "folder")
        library = _any_of(TEXT, {"type": "object", "maxProperties": 1})  # its versions differ
        shapes = {
            "source": _any_of(TEXT, self._ref_of(DataSource), *self._formats()),
            "data": _any_of(source, {"type": "array", "items": source}),
            "reward": _any_of(TEXT, folder, self._component("reward")),
            **{kind: self._component(kind) for kind in ("judge", "filter", "monitor")},
            "environment": self._component("environment"),
            "engine": _any_of({"const": LOCAL}, self._component("engine")),
            "stage": _any_of(self._training_stage(), *self._steps()),
            "stage_or_block": _any_of(_ref("stage"), self._ref_of(BlockKeys)),
            "elsewhere": {"properties": {"engine": _ref("engine")}},
            **{"optimizer": library, "schedule": library},
            **dict.fromkeys(("stage_name", "policy", "from", "reward_stage"), TEXT),
        }
        return {f"alignkit.{name}": shape for name, shape in shapes.items()}

    def _component(self, kind: str) -> Schema:
        """`NAME`, `PACKAGE:NAME` or `NAME: {options}`."""
        options = {name: self._ref_of(model) for name, model in self._options[kind].items()}
        with_options = {**_object(options), "minProperties": 1, "maxProperties": 1}
        return _any_of({"enum": sorted(options)}, QUALIFIED, with_options)

    def _formats(self) -> Iterator[Schema]:
        """`FORMAT: PATH` or `FORMAT: {path: PATH, option: ...}`."""
        for name, model in self._options["format"].items():
            both = self._ref_of(DataSource)
            if self._schema(model).get("properties"):
                both = _closed({"allOf": [self._open[DataSource], self._open[model]]})
            yield _object({name: _any_of(TEXT, both)}, name)

    def _training_stage(self) -> Schema:
        keys = _keys({"algorithm": self._component("algorithm")}, "algorithm")
        return _closed({**self._open[Settings], **keys})

    def _steps(self) -> Iterator[Schema]:
        """`step: NAME` with its options next to it, or `PACKAGE:NAME`."""
        for name, model in self._options["step"].items():
            options = {"allOf": [self._open[model], _ref("elsewhere")]}
            yield _closed({**options, **_keys({"step": {"const": name}}, "step")})
        # The options of these are unknown.
        yield {**_ref("elsewhere"), **_keys({"step": QUALIFIED}, "step")}

    def _schema(self, model: type[BaseModel]) -> Schema:
        return self._defs[self._open[model]["$ref"].removeprefix(DEFINITIONS)]

    def _ref_of(self, model: type[BaseModel]) -> Schema:
        """A model's schema without other keys, except of one that allows them."""
        ref = self._open[model]
        if model.model_config.get("extra") == "allow":
            return ref
        return _closed(ref)


def _finished(value: Any) -> Any:
    """The schema with every marked reference (see `Ref`) as that of its kind, and without titles
    that pydantic makes from names.
    """
    if isinstance(value, list):
        return list(map(_finished, value))
    if not isinstance(value, dict):
        return value
    found = dict[str, Any]()
    for key, item in value.items():
        if key == "x-alignkit":
            found |= _ref(_NAMES.get(str(item), str(item)))
            continue
        is_title = key == "title" and isinstance(item, str)
        if not is_title and (key, item) != ("additionalProperties", True):
            found[key] = _finished(item)
    return found


def _ref(name: str) -> Schema:
    return {"$ref": f"{DEFINITIONS}alignkit.{name}"}


def _any_of(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def _closed(schema: Schema) -> Schema:
    """The schema without other keys than those of all its parts."""
    return {**schema, "unevaluatedProperties": False}


def _keys(properties: Mapping[str, Schema], *required: str) -> Schema:
    return {"type": "object", "properties": dict(properties), "required": list(required)}


def _object(properties: Mapping[str, Schema], *required: str) -> Schema:
    return {**_keys(properties, *required), "additionalProperties": False}
