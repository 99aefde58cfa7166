"""Whether a value fulfills a JSON schema, in bounded time: a policy may write what keeps a pattern busy for years.

jsonschema searches patterns with Python's `re`, which nothing can interrupt. Here the package `regex` searches them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from alignkit import RunFailed

SECONDS = 2.0  # for all patterns of a schema in one answer
_DATA = {"const", "enum", "default", "examples"}  # keys whose values are no schemas


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raise RunFailed if this is no JSON schema, or one whose patterns cannot be searched in bounded time."""
    from jsonschema import SchemaError

    try:
        fulfills(None, schema)
    except SchemaError as error:
        raise RunFailed(f"reward 'format': json_schema is no JSON schema: {error.message}") from None
    keys = set(_keys(schema))
    if {"patternProperties", "unevaluatedProperties"} <= keys:
        raise RunFailed(
            "reward 'format': json_schema has patternProperties and unevaluatedProperties, whose time has no limit\n"
            "help: write additionalProperties for unevaluatedProperties"
        )


def fulfills(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value fulfills a schema.

    Raises jsonschema's SchemaError, RunFailed for a reference to elsewhere, and TimeoutError.
    """
    from jsonschema.validators import Draft202012Validator, extend, validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    kind = validator_for(schema, default=Draft202012Validator)
    kind.check_schema(schema)
    timed: Any = extend(kind, _Patterns().keywords())
    try:
        return bool(timed(schema, registry=Registry()).is_valid(value))  # the default one would ask the network
    except Unresolvable as error:
        raise RunFailed(
            f"reward 'format': json_schema refers to {error.ref}, which is not part of it; write it into $defs"
        ) from None
    except (RecursionError, OverflowError):  # nested too deeply, or `multipleOf` for a number beyond the floats
        return False


class _Patterns:
    """The keywords of JSON schema that search patterns, with one limit on the time of all of them."""

    def __init__(self) -> None:
        self._end = time.monotonic() + SECONDS

    def keywords(self) -> dict[str, Any]:
        return {
            "pattern": self._pattern,
            "patternProperties": self._properties,
            "additionalProperties": self._additional,
        }

    def _found(self, pattern: str, text: str) -> bool:
        """Whether a pattern occurs in a text. Raises TimeoutError."""
        import regex

        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        try:
            return regex.search(pattern, text, timeout=left) is not None
        except regex.error as error:  # Python's `re` reads a few patterns that `regex` does not
            raise RunFailed(f"reward 'format': the pattern {pattern!r} of json_schema: {error}") from None

    def _pattern(self, validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[Any]:
        from jsonschema import ValidationError

        if validator.is_type(value, "string") and not self._found(pattern, value):
            yield ValidationError(f"does not match {pattern!r}")

    def _properties(self, validator: Any, patterns: Mapping[str, Any], value: Any, schema: Any) -> Iterator[Any]:
        for pattern, below in patterns.items() if validator.is_type(value, "object") else ():
            for name in value:
                if self._found(pattern, name):
                    yield from validator.descend(value[name], below, path=name, schema_path=pattern)

    def _additional(self, validator: Any, rule: Any, value: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
        from jsonschema import ValidationError

        known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        for name in value if validator.is_type(value, "object") else ():
            if name in known or any(self._found(pattern, name) for pattern in patterns):
                continue
            if validator.is_type(rule, "object"):
                yield from validator.descend(value[name], rule, path=name)
            elif not rule:
                yield ValidationError(f"{name!r} is unexpected")


def _keys(schema: Any) -> Iterator[str]:
    """The keys of a schema and of those in it."""
    if isinstance(schema, Mapping):
        for key, below in schema.items():
            yield str(key)
            yield from () if key in _DATA else _keys(below)
    elif isinstance(schema, list):
        for below in schema:
            yield from _keys(below)
