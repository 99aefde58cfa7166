"""References to trained weights: a stage, a stage's policy, or the starting point of a stage (`from`)."""

from __future__ import annotations

from typing import Any

from alignkit.errors import did_you_mean
from alignkit.io.lookup import is_dir
from alignkit.io.results import is_result_name
from alignkit.recipe.document import Keys
from alignkit.recipe.scope import Scope, check_stage

_WEIGHTS = ("adapter_config.json", "config.json")


def read_stage(value: Any, keys: Keys, scope: Scope) -> str | None:
    """Return a base model, `stage` or `stage@k`, with the actual name of the stage."""
    name = scope.resolve_name(value)
    if not check_stage(name, keys, scope):
        return None
    scope.roles.append(name)
    return str(name)


def read_policy(value: Any, keys: Keys, scope: Scope) -> str | None:
    """Return a stage that does not train a reward model, or the absolute path of a folder with another run's policy.

    `STAGE@ALGORITHM` is a result of a stage that the run's folder keeps, such as `align@ppo`.
    """
    if isinstance(value, str) and is_result_name(value) and scope.is_stage(scope.resolve_name(value)):
        return _read_result(scope.resolve_name(value), keys, scope)
    if isinstance(value, str) and not _means_stage(value, scope):
        name = scope.resolve_name(value)
        if "/" in name or is_dir(scope.paths.locate(name, keys)):  # else it is a misspelled stage
            return _read_folder(name, keys, scope)
    name = read_stage(value, keys, scope)
    if name is not None and scope.trains_reward(name):
        scope.problems.error(keys, f"'{name}' is a reward model, but a policy is needed here")
        return None
    return name


def _read_result(name: str, keys: Keys, scope: Scope) -> str | None:
    stage, _, wanted = name.partition("@")
    algorithm = wanted.partition("~")[0]
    if not check_stage(stage, keys, scope):
        return None
    if not scope.registry.has("algorithm", algorithm):
        message = f"'{name}': '@' must be followed by an iteration number or the algorithm that made the result"
        scope.problems.error(keys, message, help=did_you_mean(algorithm, scope.registry.names("algorithm")))
        return None
    declared = scope.declared[stage]
    if declared is not None and (declared.kind == "step" or declared.trains_reward):
        scope.problems.error(keys, f"'{name}': stage '{stage}' does not train a policy")
        return None
    scope.roles.append(name)
    return name


def read_start(value: str, keys: Keys, scope: Scope) -> str | None:
    """Return a stage, or the absolute path of a folder that holds an adapter or a model."""
    if _means_stage(value, scope):
        return read_stage(value, keys, scope)
    return _read_folder(scope.resolve_name(value), keys, scope)


def _means_stage(value: str, scope: Scope) -> bool:
    """Whether a text is a base model or a stage, also one that does not exist yet. A stage comes before a folder."""
    name = scope.resolve_name(value)
    return scope.is_missing(value) or scope.is_stage(name) or name.partition("@")[0] in scope.bases


def _read_folder(name: str, keys: Keys, scope: Scope) -> str | None:
    folder = scope.paths.locate(name, keys)
    if not is_dir(folder):
        scope.problems.error(keys, f"'{name}' is neither a stage nor a folder", help=scope.suggest_stage(name))
        return None
    if not any((folder / file).is_file() for file in _WEIGHTS):
        inner = next((path for path in (folder / "adapter", folder / "model") if is_dir(path)), None)
        message = f"folder '{name}' holds neither an adapter (adapter_config.json) nor a model (config.json)"
        scope.problems.error(keys, message, help=f"did you mean '{name.rstrip('/')}/{inner.name}'?" if inner else "")
    if str(folder) not in scope.folders:
        scope.folders.append(str(folder))
    scope.roles.append(str(folder))
    return str(folder)
