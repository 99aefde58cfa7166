"""What has changed since a stage's result was made, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

MOST_CHANGES = 3  # that a message names
LONGEST = 40  # characters of a value that a message shows; digests have 64


def change_since(record: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    """` (epochs 2 -> 3)`: what changed since a result was made; empty if its record does not say.

    record: of stage.json. parts: what the hash is made of now.
    """
    before = record.get("depends_on")
    if not before:
        return ""
    found = differences(before, json.loads(json.dumps(parts, default=str)))
    more = f" and {len(found) - MOST_CHANGES} more" if len(found) > MOST_CHANGES else ""
    return f" ({', '.join(found[:MOST_CHANGES])}{more})" if found else ""


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """What differs between the parts of two results: `learning_rate 0.001 -> 0.002`, `versions.torch`.

    Contents, of which only digests are known, are named alone.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            text
            for name in dict.fromkeys([*old, *new])
            for text in differences(old.get(name), new.get(name), f"{path}.{name}")
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [text for index, (a, b) in pairs for text in differences(a, b, f"{path}.{index}")]
    if old == new:
        return []
    name = path.removeprefix(".")
    for prefix in ("settings.", "component.options."):
        name = name.removeprefix(prefix)
    plain = all(isinstance(value, str | int | float | None) and len(str(value)) <= LONGEST for value in (old, new))
    return [f"{name} {_shown(old)} -> {_shown(new)}" if plain else name]


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)
