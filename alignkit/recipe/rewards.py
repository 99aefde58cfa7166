"""Reads the rewards of a recipe: a stage, a folder, a plugin, or a combination of these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignkit.calls import blame, call, create
from alignkit.errors import PluginError
from alignkit.recipe.components import find_reward, split, with_options
from alignkit.recipe.document import Keys
from alignkit.recipe.problems import path_text, shown
from alignkit.recipe.schema import RewardSpec
from alignkit.recipe.scope import BASE, Scope, check_stage
from alignkit.registry import Component
from alignkit.reward import REWARD_KEY, RewardCombination


def read_reward(raw: Any, keys: Keys, scope: Scope) -> RewardSpec | None:
    """Return the reward that a recipe's value describes."""
    if isinstance(raw, RewardSpec):  # already read, as an option of a combination
        return raw
    raw = scope.resolve_name(raw)
    if name := _ambiguous(raw, scope):
        return RewardSpec("stage", name)  # of a recipe that is refused
    if isinstance(raw, str) and scope.is_stage(raw):
        return _read_stage(raw, keys, scope)
    if isinstance(raw, dict) and list(raw) == ["folder"]:
        return _read_folder(raw["folder"], (*keys, "folder"), scope)
    named = split("reward", raw, keys, scope)
    if named is None:
        return None
    if named.name in scope.declared:
        message = f"'{named.name}' is a stage and takes no options here"
        scope.problems.error(named.keys, message, at_key=True, help=f"write just '{named.name}'")
        return None
    if named.name in scope.bases:
        message = f"'{named.name}' is a base model, which has no score"
        help = "name a stage that trains a reward model" + f" with 'base: {named.name}'" * (named.name != BASE)
        scope.problems.error(named.name_keys, message, at_key=named.at_key, help=help)
        return None
    registration = find_reward(named, scope)
    if registration is None:
        return None
    component = with_options("reward", named.name, registration, named.options, named.keys, scope)
    return _read_plugin(component, named.keys, scope) if component else None


def _ambiguous(raw: Any, scope: Scope) -> str:
    """The name that a stage shares with a reward plugin, which is reported where the stage is named; else empty."""
    name = raw if isinstance(raw, str) else next(iter(raw), "") if isinstance(raw, dict) else ""
    return name if name in scope.declared and scope.registry.has("reward", name) else ""


def _read_stage(name: str, keys: Keys, scope: Scope) -> RewardSpec | None:
    if not check_stage(name, keys, scope):
        return None
    trains = scope.trains_reward(name)
    if trains is False:
        message = f"stage '{name.partition('@')[0]}' cannot be a reward: it does not train a reward model"
        help = "a reward is a stage that trains a reward model, a reward plugin, or {folder: PATH}"
        scope.problems.error(keys, message, help=help)
    scope.roles.append(name)
    return RewardSpec("stage", name) if trains else None


def _read_folder(raw: Any, keys: Keys, scope: Scope) -> RewardSpec | None:
    if not isinstance(raw, str):
        scope.problems.error(keys, f"{path_text(keys)}: expected a folder, got {shown(raw)}")
        return None
    path = scope.paths.folder(raw, keys)
    if path is None:
        return None
    scope.roles.append(str(path))
    return RewardSpec("folder", str(path))


def _read_plugin(component: Component, keys: Keys, scope: Scope) -> RewardSpec | None:
    """Return a reward plugin; a combination also has its parts."""
    if not issubclass(component.registration.implementation, RewardCombination):
        return RewardSpec("reward", component.name, component)
    try:
        combination = create(component)
        parts = dict(call(combination, "parts", returns=_wrong_parts))
        with blame(combination, "whitens"):
            whitens = bool(combination.whitens)
    except PluginError as error:
        scope.problems.error(keys, str(error), plugin=True)
        return None
    if REWARD_KEY in parts:
        message = f"a part of '{component.name}' cannot be named '{REWARD_KEY}', which is the name of the whole"
        scope.problems.error(keys, message, help="rename the part")
        return None
    # `parts` may return raw rewards that are not RewardRef options. Read them like options.
    children = {name: read_reward(value, (*keys, name), scope) for name, value in parts.items()}
    good = {name: child for name, child in children.items() if child is not None}
    for name in [name for name, part in good.items() if part.whitens and not combination.sums]:
        message = f"reward '{component.name}' compares raw scores, so its part '{name}' cannot be whitened"
        scope.problems.error((*keys, name), message, help="set 'whiten: false' in the part, or leave it out")
    whitens = whitens or any(part.whitens for part in good.values())
    return RewardSpec("combine", component.name, component, good, whitens) if len(good) == len(children) else None


def _can_be_part(name: Any, value: Any) -> bool:
    """Whether a recipe may have meant it, rightly or wrongly: a name, options, or what these became."""
    return isinstance(name, str) and name != "" and isinstance(value, str | Mapping | RewardSpec | None)


def _wrong_parts(parts: Any) -> str:
    wrong = [name for name, part in parts.items() if not _can_be_part(name, part)]
    return f"return rewards by name, not {wrong[0]!r:.60}: {parts[wrong[0]]!r:.60}" if wrong else ""
