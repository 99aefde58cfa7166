"""Describes options as text, for `alignkit plugins NAME` and tables in the docs: their JSON schema
in words.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from alignkit.algorithm import Algorithm, StageDefaults

LONGEST_DEFAULT = 60  # characters; a longer default is a built-in text, such as a judge's question
# Of references (`alignkit.options.Ref`), those that are not called what they are.
_REFERENCES = {
    **dict.fromkeys(("policy", "reward_stage"), "stage"),
    "from": "stage or folder",
    "training_data": "data",
}
_TYPES = {"string": "text", "boolean": "true | false", "object": "mapping"}
_PLURALS = ("text", "integer", "number", "stage", "reward", "filter", "monitor")
_LIMITS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


@dataclass(frozen=True)
class OptionRow:
    """One option in readable form. range: `above 0`, `0 to 1` or empty."""

    name: str
    type: str
    range: str
    default: str
    description: str

    @property
    def type_and_range(self) -> str:
        """`number, 0 to 1`."""
        return f"{self.type}, {self.range}" if self.range else self.type


def option_rows(model: type[BaseModel]) -> list[OptionRow]:
    """The options of a model by the names that a recipe uses: its own first, in the order of their
    declaration.
    """
    own, schema = inspect.get_annotations(model), model.model_json_schema()["properties"]
    rows = []
    for name, info in sorted(model.model_fields.items(), key=lambda field: field[0] not in own):
        key = info.alias or name
        text, default = _type(schema[key]), _default(info)
        if default == "null" and "null" not in text:  # a reference is of any type
            text = _any_of([text, "null"])
        rows.append(
            OptionRow(
                key, text, _range(schema[key]), default, " ".join((info.description or "").split())
            )
        )
    return rows


def stage_defaults(algorithm: type[Algorithm]) -> dict[str, str]:
    """The stage-level defaults that an algorithm sets, as a recipe writes them."""
    defaults = {
        field.name: getattr(algorithm.defaults, field.name) for field in fields(StageDefaults)
    }
    return {name: value_text(value) for name, value in defaults.items() if value not in (None, {})}


def value_text(value: Any) -> str:
    """A value as written in a recipe: `true`, `null`, `1e-5`, `[0.5, 0.7]`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value).replace("e-0", "e-")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(value_text, value))}]" if value else "empty"
    if isinstance(value, Mapping) and value:
        return f"{{{', '.join(f'{key}: {value_text(one)}' for key, one in value.items())}}}"
    if isinstance(value, BaseModel):
        return "its own defaults"
    return "empty" if value in ("", {}) else str(value)


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    text = value_text(info.get_default(call_default_factory=True, validated_data={}))
    return "built-in" if len(text) > LONGEST_DEFAULT or "\n" in text else text


def _any_of(texts: Sequence[str]) -> str:
    """`stage, folder or null`."""
    parts = list(dict.fromkeys(" or ".join(texts).split(" or ")))
    return " or ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _type(schema: Mapping[str, Any]) -> str:
    """The type that a schema allows, in words."""
    if kind := schema.get("x-alignkit"):
        return _REFERENCES.get(kind, kind)
    if "anyOf" in schema:
        return _any_of([_type(arm) for arm in schema["anyOf"]])
    if values := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
        return " | ".join(map(value_text, values))
    kind = schema.get("type", "")
    if kind == "array":
        parts = schema.get("prefixItems", [])
        each = _type(parts[0] if parts else schema.get("items", {}))
        plural = f"{each}s" if each in _PLURALS else each
        return f"{len(parts)} {plural}" if parts else f"list of {plural}"
    if schema.get("format") == "path":
        return "file"
    if not kind:
        return "mapping" if "$ref" in schema else "any value"
    return _TYPES.get(kind, kind)


def _range(schema: Mapping[str, Any]) -> str:
    """The limits of a number, or of the only arm that is one."""
    for arm in (schema, *schema.get("anyOf", ())):
        limits = {key: value_text(arm[key]) for key in _LIMITS if key in arm}
        if limits.keys() == {"minimum", "maximum"}:
            return f"{limits['minimum']} to {limits['maximum']}"
        if limits:
            return " and ".join(f"{_LIMITS[key]} {limit}" for key, limit in limits.items())
    return ""
