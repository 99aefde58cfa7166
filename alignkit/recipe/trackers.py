"""Reads the trackers of a recipe, and adds those of the command line. They are part of no stage's hash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from alignkit.errors import Problem, RecipeError
from alignkit.recipe.components import options_of, read_component
from alignkit.recipe.problems import shown
from alignkit.recipe.schema import Recipe
from alignkit.recipe.scope import Scope
from alignkit.registry import Component, Registry, Unresolved


def read_trackers(raw: Any, scope: Scope) -> tuple[Component, ...]:
    """The trackers that a recipe names."""
    if raw is not None and not isinstance(raw, list):
        scope.problems.error(("trackers",), f"trackers: expected a list, got {shown(raw)}", help="write [tensorboard]")
        return ()
    read: dict[str, Component] = {}
    for index, item in enumerate(raw or ()):
        component = read_component("tracker", item, ("trackers", index), scope)
        if component is None:
            continue
        if component.name in read:
            message = f"tracker '{component.name}' is named twice"
            scope.problems.error(("trackers", index), message, help="remove one of them")
        read[component.name] = component
    return tuple(read.values())


def with_trackers(recipe: Recipe, names: Sequence[str], registry: Registry) -> Recipe:
    """The recipe with more trackers, by name. Raises RecipeError for one that cannot be used, Unresolved if broken."""
    known = {component.name for component in recipe.trackers}
    new = [_component(name, registry) for name in dict.fromkeys(names) if name not in known]
    return replace(recipe, trackers=(*recipe.trackers, *new))


def tracker_problem(recipe: Recipe, index: int, message: str, help: str = "") -> Problem:
    """A mistake in a tracker of a recipe, where the tracker is named: in its document, or on the command line."""
    if index < len(recipe.resolved.get("trackers") or ()):
        return recipe.problem(("trackers", index), message, help=help)
    return _at_option(recipe.trackers[index].name, message, help)


def _at_option(name: str, message: str, help: str) -> Problem:
    return Problem(message, f"--tracker {name}", help=help)


def _component(name: str, registry: Registry) -> Component:
    try:
        registration = registry.get("tracker", name)
        options = options_of(registration)()
    except Unresolved as error:
        if error.broken:
            raise
        raise RecipeError([_at_option(name, error.message, error.help)]) from error
    except ValidationError as error:
        missing = ", ".join(str(each["loc"][0]) for each in error.errors())
        help = f"name it in the recipe, as in `trackers: [{{{name}: {{{missing.split(', ')[0]}: ...}}}}]`"
        raise RecipeError([_at_option(name, f"tracker '{name}' needs options: {missing}", help)]) from error
    return Component("tracker", name, registration, options)
