"""Reads which executor carries out the rows of a step."""

from __future__ import annotations

from typing import Any

from alignkit.errors import did_you_mean
from alignkit.executor import LOCAL
from alignkit.recipe.components import read_component
from alignkit.recipe.document import Keys
from alignkit.recipe.schema import RewardSpec, specs
from alignkit.recipe.scope import Scope
from alignkit.registry import Component


def read_executor(raw: Any, keys: Keys, component: Component | None, scope: Scope) -> Component | None:
    """Return an executor with its options; None if the step works in its own process, and for a mistake.

    component: the step; None if it is wrong.
    """
    if raw is None or raw == LOCAL:
        return None
    if isinstance(raw, str) and not scope.registry.has("executor", raw) and did_you_mean(raw, [LOCAL]):
        scope.problems.error(keys, f"unknown executor '{raw}'", help=did_you_mean(raw, [LOCAL]))
        return None
    executor = read_component("executor", raw, keys, scope)
    if component is not None and not can_be_dealt(component):
        message = f"step '{component.name}' works on no rows one by one, so 'executor' would have no effect"
        steps = [each.name for each in scope.registry.registrations("step") if each.implementation.maps]
        help = f"leave 'executor' out; these can use it: {', '.join(steps)}, and every step that scores with a reward"
        scope.problems.error(keys, message, at_key=True, help=help)
    return executor


def can_be_dealt(component: Component) -> bool:
    """Whether an executor can carry out rows of this step: its own maps, or the scores of rewards."""
    return bool(component.registration.implementation.maps) or bool(specs(component.options, RewardSpec))
