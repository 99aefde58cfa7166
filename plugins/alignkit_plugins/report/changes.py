"""What a change of a recipe means for a stage: why it starts over, and what becomes of settings
when its algorithm is swapped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from alignkit.algorithm import StageDefaults
from alignkit.recipe.rules import ONLY_ONLINE
from alignkit.recipe.schema import Recipe, Stage
from alignkit.settings import LEARNING_RATE, Rollout, Settings

LONGEST = 40  # characters of a value that a message shows; digests have 64
MOST = 3  # changes that a message names
_CODE = {"source", "version", "recognized"}  # of a plugin, by digests
_AROUND = ("settings", "component", "options", "sources")  # keys that a recipe does not write
_CONTENTS = {"base": "the base model", "template": "the chat template"}
_RATE = "learning_rate"

Path = tuple[str | int, ...]


class Change(NamedTuple):
    """A value that differs. path: keys and indices that lead to it."""

    path: Path
    old: Any
    new: Any


def flat(value: Any, path: Path = ()) -> dict[Path, Any]:
    """The values of nested plain data by the keys and indices that lead to them; empty mappings and
    lists have none.
    """
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        return {path: value}
    found = dict[Path, Any]()
    for key, below in items:
        found |= flat(below, (*path, key))
    return found


def dotted(path: Path) -> str:
    """`rollout.temperature`"""
    return ".".join(map(str, path))


def changes(old: Any, new: Any) -> list[Change]:
    """The values that differ between two pieces of plain data. Missing ones count as None."""
    before, now = flat(old), flat(new)
    every = [Change(path, before.get(path), now.get(path)) for path in {**before, **now}]
    return [change for change in every if change.old != change.new]


def shown(change: Change) -> str:
    """`epochs: 2 -> 3`, or that a long value has changed, by the keys that a recipe writes."""
    name = _name(change.path)
    if max(len(str(change.old)), len(str(change.new))) > LONGEST:
        return f"{name} has changed"
    old, new = ("not set" if value is None else value for value in (change.old, change.new))
    return f"{name}: {old} -> {new}"


def _name(path: Path) -> str:
    names = list[str]()
    for key, before in zip(path, (None, *path), strict=False):
        if key not in _AROUND and (key, before) != (0, "sources"):
            names.append(str(key).rstrip("_"))
    return dotted(tuple(names or path))


def change_since(record: Mapping[str, Any], parts: Mapping[str, Any], stage: Stage) -> str:
    """` (epochs: 2 -> 3)`: what changed since a result was made; empty if its record does not say.

    record: of stage.json. parts: what the key is made of now.
    """
    before = record.get("depends_on")
    if not before:
        return ""
    now = json.loads(json.dumps(parts, default=str))
    every, names = changes(before, now), flat(now)
    swap = next((change for change in every if change.path == ("component", "name")), None)
    words = dict[str, None]()
    if swap is not None:
        words[f"{stage.kind}: {swap.old} -> {swap.new}"] = None
    for change in every:
        if swap is None or not _of_the_algorithm(change.path):
            words[_in_words(change, names)] = None
    told = sorted(words, key=lambda text: text.startswith("the code of"))  # the user's come first
    if not told:
        return ""
    more = f" and {len(told) - MOST} more" if len(told) > MOST else ""
    return f" ({', '.join(told[:MOST])}{more})"


def _of_the_algorithm(path: Path) -> bool:
    """Whether a change may come from another algorithm: `carried_over` says what becomes of its
    settings.
    """
    tuning = len(path) == 2 or path[1] == "rollout"
    is_setting = path[0] == "settings" and tuning and path[1] != "from_"
    return is_setting or path[0] in ("component", "versions")


def _in_words(change: Change, names: Mapping[Path, Any]) -> str:
    """names: all values now, among which are the names of plugins."""
    path = change.path
    for at, key in enumerate(path):
        if key in _CODE:
            return f"the code of {names.get((*path[:at], 'name'), 'alignkit')} has changed"
    if path[0] in _CONTENTS:
        return f"{_CONTENTS[str(path[0])]} has changed"
    if path[-1] == "content":
        return f"{_name(path[:-1])}: the file has changed"
    if path[0] == "upstream" and change.old and change.new:
        return f"{path[1]} has changed"
    return shown(change)


def carried_over(
    record: Mapping[str, Any], stage: Stage, recipe: Recipe, hidden_size: int, lora: bool
) -> Iterator[str]:
    """A line for each setting that was written for another algorithm, and for each default that
    changes.

    There is none if the result before has the same algorithm. record: of that result. hidden_size:
    of the model, for the default of the learning rate. lora: whether an adapter is trained.
    """
    from alignkit.training.learner import scaled  # imports torch

    old, new = record.get("plugin"), stage.component.name
    before = (record.get("depends_on") or {}).get("settings")
    if stage.settings is None or before is None or old is None or old == new:
        return  # the same algorithm, or one of them is a step
    defaults: StageDefaults = stage.component.registration.implementation.defaults
    rate = scaled(defaults.learning_rate or LEARNING_RATE, hidden_size, lora)
    written = _with_rollout((recipe.resolved.get("stages") or {}).get(stage.name) or {})
    was = {**_with_rollout(before), _RATE: (record.get("summary") or {}).get(_RATE)}
    now = _with_rollout(stage.settings.model_dump(include={*vars(defaults), "rollout"}))
    online = stage.settings.prompts is not None and before.get("prompts") is not None
    for key, default in {**_defaults(defaults, online), _RATE: rate}.items():
        first, value = was.get(key), now.get(key)
        if first is None:
            continue
        if key not in written and first != default:
            yield f"{key}: {first} -> {default}, the default of {new}"
        elif key in written and first != value:
            yield f"{key}: {first} -> {value}"
        elif key in written and value != default:
            text = f"{key} {value} was written for {old} and is kept"
            yield f"{text}; the default of {new} is {default}"


def _defaults(chosen: StageDefaults, online: bool) -> dict[str, Any]:
    """The value of each setting that an algorithm may choose, if the recipe does not write it.

    online: with those of samples. Options of the optimizer are no settings.
    """
    general = {**Settings.model_fields, **Rollout.model_fields}
    left_out = {"optimizer"}
    if not online:
        left_out |= {*ONLY_ONLINE, *Rollout.model_fields}
    found = dict[str, Any]()
    for key, value in vars(chosen).items():
        if key in general and key not in left_out:
            found[key] = general[key].default if value is None else value
    return found


def _with_rollout(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the keys of `rollout` next to the others."""
    rollout = settings.get("rollout")
    if isinstance(rollout, Mapping):
        return {**settings, **rollout}
    return dict(settings)
