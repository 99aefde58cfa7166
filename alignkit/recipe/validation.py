"""Validates one mapping of a recipe against its model, and reports pydantic's errors in plain words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from alignkit.errors import did_you_mean
from alignkit.options import Options
from alignkit.recipe.document import Keys, non_finite
from alignkit.recipe.problems import Problems, path_text, shown
from alignkit.recipe.schema import NAME_PATTERN, allowed_keys
from alignkit.settings import Settings

Model = TypeVar("Model", bound=Options)
ErrorItem = Mapping[str, Any]  # one of `ValidationError.errors()`


@dataclass(frozen=True)
class Checked(Generic[Model]):
    """The result of `validate`. value: None if anything is wrong. failed: paths of the values that are wrong."""

    value: Model | None
    failed: frozenset[Keys] = frozenset()


def validate(
    model: type[Model],
    raw: Any,
    keys: Keys,
    problems: Problems,
    *,
    hint: Callable[[str], str] = lambda key: "",
    hidden: Collection[str] = (),
) -> Checked[Model]:
    """Validate plain data strictly: '1e-5' in quotes is not a number, and `yes` is not a boolean.

    hint: help for an unknown key, or an empty string. hidden: keys of the model that must not be suggested.
    """
    infinite = list(non_finite(raw))
    for place in infinite:
        problems.error((*keys, *place), f"{path_text((*keys, *place))}: expected a finite number")
    failed = set(infinite)
    try:
        # In JSON mode pydantic is strict about scalars, but accepts lists for tuples, and text for paths and enums.
        value = model.model_validate_json(json.dumps(raw), strict=True)
        if not infinite:
            return Checked(value)
    except ValidationError as error:
        places: dict[Keys, list[ErrorItem]] = {}  # by their path in the YAML
        for item in error.errors(include_url=False):
            if (place := _place(item, raw)) not in failed:
                places.setdefault(place, []).append(item)
        failed |= places.keys()
        mapping = _Mapping(model, keys, problems, hint, hidden)
        for place in places:
            mapping.report(place, places)
    except Exception as error:  # a plugin's validator raised something else
        problems.error(keys, f"{path_text(keys)}: {type(error).__name__}: {error}")
    return Checked(None, frozenset((*keys, *place) for place in failed))


def _place(item: ErrorItem, raw: Any) -> Keys:
    """Return an error's path in the YAML. pydantic's own path also contains names of union arms."""
    place: list[str | int] = []
    value = raw
    last = len(item["loc"]) - 1
    for index, part in enumerate(item["loc"]):
        if (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int)):
            value = value[part]
            place.append(part)
        elif index == last and item["type"] == "missing":
            place.append(part)
    return tuple(place)


@dataclass(frozen=True)
class _Mapping:
    """The mapping whose errors are reported."""

    model: type[BaseModel]
    keys: Keys
    problems: Problems
    hint: Callable[[str], str]
    hidden: Collection[str]

    def report(self, place: Keys, places: Mapping[Keys, Sequence[ErrorItem]]) -> None:
        """Report the errors at one place as one problem."""
        errors = places[place]
        kinds = {item["type"] for item in errors}
        full = (*self.keys, *place)
        if _expected(errors[0]) and _has_deeper(place, places):
            return  # an arm of a union that fits the value less well than the arm that failed deeper
        if "extra_forbidden" in kinds:
            nested = len(place) > 1
            allowed = [key for key in _siblings(self.model, errors[0]["loc"][:-1]) if nested or key not in self.hidden]
            help = _only_missing(place, places) if nested else self.hint(str(place[-1]))
            self.problems.unknown_key(full, allowed, help)
        elif "missing" in kinds:
            self.problems.missing(full, help=self._describe(place))
        else:
            message, help = _wrong_value(path_text(full) or "recipe", errors)
            self.problems.error(full, message, help=help or self._describe(place))

    def _describe(self, place: Keys) -> str:
        """Return the description of the key at a place."""
        model = _model_at(self.model, place[:-1])
        info = _field(model, place[-1]) if model and place else None
        return (info.description or "") if info else ""


def _only_missing(place: Keys, places: Mapping[Keys, Sequence[ErrorItem]]) -> str:
    """Help for an unknown key if it is the only one in its mapping, which lacks exactly one key; else empty."""
    around = {other: {item["type"] for item in errors} for other, errors in places.items() if other[:-1] == place[:-1]}
    missing = [other[-1] for other, kinds in around.items() if "missing" in kinds]
    unknown = [other for other, kinds in around.items() if "extra_forbidden" in kinds]
    return f"did you mean '{missing[0]}', which is missing?" if len(missing) == len(unknown) == 1 else ""


def _has_deeper(place: Keys, places: Iterable[Keys]) -> bool:
    """Whether anything inside the value at a place is wrong too."""
    return any(len(other) > len(place) and other[: len(place)] == place for other in places)


def _siblings(model: type[BaseModel], loc: Iterable[str | int]) -> list[str]:
    """Return the keys that are allowed at an error's place."""
    current = _model_at(model, loc)
    if current is None:
        return []
    # A stage's `algorithm` is not part of its settings, but is written next to them.
    return (["algorithm"] if current is Settings else []) + allowed_keys(current)


def _model_at(model: type[BaseModel], path: Iterable[str | int]) -> type[BaseModel] | None:
    """Return the model of the mapping at a path, which may contain indices and names of union arms."""
    current: type[BaseModel] | None = model
    for part in path:
        info = _field(current, part) if current else None
        if info is not None:
            current = _model_in(info.annotation)
    return current


def _field(model: type[BaseModel], key: str | int) -> Any:
    """Return the field that a recipe writes under a key, or None."""
    return next((info for name, info in model.model_fields.items() if key in (name, info.alias)), None)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model class inside `Model`, `Model | None`, `list[Model]` ..."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for arg in get_args(annotation) if (model := _model_in(arg))), None)


# --- pydantic's errors in plain words

_MAPPING = "a mapping (key: value)"
_INTEGER = "an integer"
_EXPECTED = {
    "int_type": _INTEGER,
    "int_from_float": _INTEGER,
    "int_parsing": _INTEGER,
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list without duplicates",
    "dict_type": _MAPPING,
    "model_type": _MAPPING,
    "dataclass_type": _MAPPING,
    "none_required": "null",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "multiple_of": "a multiple of {multiple_of:g}",
    "too_short": "at least {min_length} items",
    "too_long": "at most {max_length} items",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "text that matches {pattern}",
}


def _expected(error: ErrorItem) -> str | None:
    """Return the expected value in words, or None if the error has its own message."""
    phrase, details = _EXPECTED.get(error["type"]), error.get("ctx", {})
    if phrase is None:
        return None
    if details.get("pattern") == NAME_PATTERN:
        return "letters, digits, '.', '_' and '-', starting with a letter or digit"
    return re.sub(r"\b1 (item|character)s$", r"1 \1", phrase.format(**details))


def _wrong_value(where: str, errors: Sequence[ErrorItem]) -> tuple[str, str]:
    """Return message and help for the errors at one place. A union causes one error per arm."""
    value = errors[0]["input"]
    # An arm whose model has something to say of the whole value fits it better than one of another type.
    errors = [item for item in errors if item["type"] == "value_error"] or errors
    phrases = list(dict.fromkeys(phrase for phrase in map(_expected, errors) if phrase))
    if not phrases:
        message = str(errors[0]["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
        return f"{where}: {message}", ""
    return f"{where}: expected {' or '.join(phrases)}, got {shown(value)}", _value_help(value, phrases)


def _value_help(value: Any, phrases: Sequence[str]) -> str:
    """Suggest how to write a value that has the wrong type or is misspelled."""
    if value == "none":
        return "write null for no value"
    if isinstance(value, str) and any(phrase in (_INTEGER, "a number") for phrase in phrases):
        plain = value.replace("_", "").strip()
        if re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", plain):
            return f"write {plain}"
    if "true or false" in phrases and str(value).lower() in ("yes", "no", "on", "off", "0", "1", "true", "false"):
        return f"write {'true' if str(value).lower() in ('yes', 'on', '1', 'true') else 'false'}"
    if isinstance(value, str):
        choices = [choice for phrase in phrases for choice in re.findall(r"'([^']*)'", phrase)]
        return did_you_mean(value, choices)
    return ""
