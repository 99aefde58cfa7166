"""What becomes of a stage's settings when its algorithm is swapped: those written for the other one, and defaults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alignkit.algorithm import StageDefaults
from alignkit.recipe.rounds import stages_of_rounds
from alignkit.recipe.schema import Recipe, Stage
from alignkit.settings import LEARNING_RATE, Rollout, Settings
from alignkit.training.learning_rate import scaled

_RATE = "learning_rate"


def carried_over(record: Mapping[str, Any], stage: Stage, recipe: Recipe, hidden_size: int, lora: bool) -> list[str]:
    """A line for each setting that was written for another algorithm, and for each default that changes.

    Empty if the result before has the same algorithm. record: of that result. hidden_size: of the model, for the
    default of the learning rate. lora: whether an adapter is trained.
    """
    old, settings, before = record.get("plugin"), stage.settings, (record.get("depends_on") or {}).get("settings")
    if settings is None or before is None or old is None or old == stage.component.name:
        return []  # the same algorithm, or one of them is a step
    defaults: StageDefaults = stage.component.registration.implementation.defaults
    rate = scaled(defaults.learning_rate or LEARNING_RATE, hidden_size, lora)
    raw = stages_of_rounds(recipe.resolved.get("stages") or {}).get(stage.name)
    written = _flat(raw if isinstance(raw, Mapping) else {})
    was = {_RATE: (record.get("summary") or {}).get(_RATE), **_known(_flat(before))}
    now = {**_known(_flat(settings.model_dump(include={*vars(defaults), "rollout"}))), _RATE: settings.learning_rate}
    return list(_lines(str(old), stage.component.name, was, now, written, {**_defaults(defaults), _RATE: rate}))


def _lines(
    old: str,
    new: str,
    was: Mapping[str, Any],
    now: Mapping[str, Any],
    written: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> Iterator[str]:
    for key, default in defaults.items():
        before, value = was.get(key), now.get(key)
        if key not in written:
            if before is not None and before != default:
                yield f"{key}: {before} -> {default}, the default of {new}"
        elif before == value and value != default:
            yield f"{key} {value} was written for {old} and is kept; the default of {new} is {default}"
        elif before != value and before is not None:
            yield f"{key}: {before} -> {value}"


def _defaults(own: StageDefaults) -> dict[str, Any]:
    """The value of each setting that an algorithm may choose, if the recipe does not write it."""
    general = {**Settings.model_fields, **Rollout.model_fields}
    return {
        key: own_value if own_value is not None else general[key].default
        for key, own_value in vars(own).items()
        if key in general
    }


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the keys of `rollout` next to the others."""
    rollout = settings.get("rollout")
    return {**settings, **(rollout if isinstance(rollout, Mapping) else {})}


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
