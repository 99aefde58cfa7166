"""What a change of a recipe means for a stage: why it starts over, in the words of its recipe, and
what becomes of settings when its algorithm is swapped: those written for the other one, and
defaults.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.algorithm import StageDefaults
from alignkit.data.sources import DataSource
from alignkit.recipe.rules import ONLY_ONLINE
from alignkit.recipe.schema import Recipe, Stage, specs
from alignkit.registry import Component
from alignkit.settings import LEARNING_RATE, Rollout, Settings
from alignkit.training.learner import scaled
from alignkit_plugins.report.changes import Change, changes, shown

MOST = 3  # changes that a message names
_CODE = ("source", "version", "recognized")  # of a plugin, by digests
_CONTENTS = {"base": "the base model has changed", "template": "the chat template has changed"}
_RATE = "learning_rate"
_WRAPPERS = ("component", "options")  # keys of what a hash is made of that a recipe does not have


def change_since(record: Mapping[str, Any], parts: Mapping[str, Any], stage: Stage) -> str:
    """` (epochs: 2 -> 3)`: what changed since a result was made; empty if its record does not say.

    record: of stage.json. parts: what the hash is made of now.
    """
    before = record.get("depends_on")
    if not before:
        return ""
    now = json.loads(json.dumps(parts, default=str))
    found = list(changes(before, now))
    words = _Words(
        stage,
        now,
        {change.path for change in found},
        [one.get("name") for one in record.get("data") or ()],
    )
    told = [text for text in dict.fromkeys(map(words.of, found)) if text]
    told.sort(key=lambda text: text.endswith("code has changed"))  # what the user did comes first
    more = f" and {len(told) - MOST} more" if len(told) > MOST else ""
    return f" ({', '.join(told[:MOST])}{more})" if told else ""


@dataclass(frozen=True)
class _Words:
    """Changes of a stage in words.

    parts: what its hash is made of now. paths: of all changes. read: names of the files that the
    old result read.
    """

    stage: Stage
    parts: Mapping[str, Any]
    paths: set[tuple[str | int, ...]]
    read: list[Any]

    def of(self, change: Change) -> str:
        """A change; empty if another one implies it."""
        first, *rest = change.path
        keys = [str(key) for key in rest]
        swapped = ("component", "name") in self.paths
        if change.path == ("component", "name"):
            return f"{self.stage.kind}: {change.old} -> {change.new}"
        tuning = not keys or keys[0] == "rollout" or (len(keys) == 1 and keys[0] != "from_")
        if swapped and (first in ("component", "versions") or (first == "settings" and tuning)):
            return ""  # `carried_over` says what becomes of the other algorithm's settings
        if place := next((place for place, key in enumerate(change.path) if key in _CODE), 0):
            return self._code(change.path[:place])
        if first in _CONTENTS:
            return "" if ("model", first) in self.paths else _CONTENTS[str(first)]
        if "sources" in keys[:-2]:
            return self._data(change, keys)
        if first == "upstream":
            return f"{keys[0]} has changed" if change.old and change.new else ""
        if "files" in keys:
            return f"{keys[-1]}: the file has changed"
        inner = first in ("settings", "component", "versions")
        return _plain(keys if inner else [str(first), *keys], change)

    def _code(self, path: tuple[str | int, ...]) -> str:
        """Other code of the plugin at a place in the parts."""
        place: Any = self.parts
        for key in path:
            place = place[key] if isinstance(key, int) else place.get(key) or {}
        components = [
            self.stage.component,
            *specs([self.stage.settings, self.stage.component.options], Component),
        ]
        name = place.get("name") if isinstance(place, Mapping) else None
        theirs = {one.name for one in components if one.registration.distribution != "alignkit"}
        return f"{name}'s code has changed" if name in theirs else "alignkit's code has changed"

    def _data(self, change: Change, keys: list[str]) -> str:
        """A change of a source of data."""
        place = keys.index("sources")
        source: Any = self.stage.settings if change.path[0] == "settings" else self.stage.component
        for key in change.path[1 : place + 3]:
            inner: Any = key
            source = (
                source[inner]
                if isinstance(source, Mapping | list | tuple)
                else getattr(source, str(key), None)
            )
        entry = [key for key in keys[:place] if key not in _WRAPPERS]
        if keys[-1] != "content" or not isinstance(source, DataSource):
            return _plain([*entry, *keys[place + 2 :]], change)
        file = "/".join(Path(source.name).parts[-2:])
        same = source.name in self.read
        return (
            f"{file}: the file has changed" if same else f"{'.'.join(entry)}: another file, {file}"
        )


def _plain(keys: list[str], change: Change) -> str:
    return shown(change, ".".join(key.rstrip("_") for key in keys if key not in _WRAPPERS))


def carried_over(
    record: Mapping[str, Any], stage: Stage, recipe: Recipe, hidden_size: int, lora: bool
) -> Iterator[str]:
    """A line for each setting that was written for another algorithm, and for each default that
    changes.

    There is none if the result before has the same algorithm. record: of that result. hidden_size:
    of the model, for the default of the learning rate. lora: whether an adapter is trained.
    """
    old, new, before = (
        record.get("plugin"),
        stage.component.name,
        (record.get("depends_on") or {}).get("settings"),
    )
    if stage.settings is None or before is None or old is None or old == new:
        return  # the same algorithm, or one of them is a step
    own: StageDefaults = stage.component.registration.implementation.defaults
    rate = scaled(own.learning_rate or LEARNING_RATE, hidden_size, lora)
    raw = (recipe.resolved.get("stages") or {}).get(stage.name)
    written = _flat(raw if isinstance(raw, Mapping) else {})
    was = {_RATE: (record.get("summary") or {}).get(_RATE), **_known(_flat(before))}
    chosen = stage.settings.model_dump(include={*vars(own), "rollout"})
    now = {**_known(_flat(chosen)), _RATE: stage.settings.learning_rate}
    online = stage.settings.prompts is not None and before.get("prompts") is not None
    for key, default in {**_defaults(own, online), _RATE: rate}.items():
        first, value = was.get(key), now.get(key)
        if key not in written:
            if first is not None and first != default:
                yield f"{key}: {first} -> {default}, the default of {new}"
        elif first == value and value != default:
            yield (
                f"{key} {value} was written for {old} and is kept; the default of {new} is "
                f"{default}"
            )
        elif first != value and first is not None:
            yield f"{key}: {first} -> {value}"


def _defaults(own: StageDefaults, online: bool) -> dict[str, Any]:
    """The value of each setting that an algorithm may choose, if the recipe does not write it.

    online: with those of samples. Options of the optimizer are no settings.
    """
    general = {**Settings.model_fields, **Rollout.model_fields}
    left_out = {"optimizer"} if online else {"optimizer", *ONLY_ONLINE, *Rollout.model_fields}
    chosen = {
        key: value for key, value in vars(own).items() if key in general and key not in left_out
    }
    return {key: general[key].default if value is None else value for key, value in chosen.items()}


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the keys of `rollout` next to the others."""
    rollout = settings.get("rollout")
    return {**settings, **(rollout if isinstance(rollout, Mapping) else {})}


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
