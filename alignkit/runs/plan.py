"""What a run would do with each stage, and what has changed since a result was made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from alignkit.io.digest import digest

if TYPE_CHECKING:
    from alignkit.runs.run import Run

MOST_CHANGES = 3  # that a message names
LONGEST = 40  # characters of a value that a message shows; digests have 64


def plan(run: Run) -> Iterator[str]:
    """What a run would do with each stage: `sft: reused`. Nothing is done."""
    known = any(map(run.store.has_results, run.recipe.stages))  # else no hash is needed, and no base model
    for stage in run.recipe.stages.values():
        parts = run.parts_of(stage) if known else {}
        run.hashes[stage.name] = digest(parts)
        yield f"{stage.name}: {_planned(run, stage.name, parts)}"


def _planned(run: Run, name: str, parts: Mapping[str, Any]) -> str:
    store, stage_hash = run.store, run.hashes[name]
    record = store.record(name)
    if store.is_complete(name, stage_hash):
        damage = store.damage(name)
        return f"runs again, because {damage}" if damage else "reused"
    if store.waits(name, stage_hash):
        return "an earlier result comes back"
    if record.get("hash") == stage_hash:
        return "continues"
    return f"starts over{change_since(record, parts)}" if record else "runs"


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
