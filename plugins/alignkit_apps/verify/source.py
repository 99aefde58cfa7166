"""The run to verify: its recipe, its stages' records, and reasons why a stage cannot be verified."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from alignkit.errors import Problem, RecipeError, did_you_mean
from alignkit.io.changes import Change, changes, shown
from alignkit.recipe.schema import NAME_PATTERN, Recipe, Stage
from alignkit.runs.files import RECIPE
from alignkit.runs.stage_store import StageStore

_DIGEST = re.compile(r"[0-9a-f]{64}")
_ENVIRONMENT = ("versions", "kernels")  # of the parts of a hash: not inputs, but possible causes of a difference
_CODE = ("source", "version", "recognized")  # keys of a plugin in the parts of a hash


@dataclass(frozen=True)
class Recorded:
    """A run and those of its stages that are to be verified."""

    run: Path
    recipe: Recipe
    names: tuple[str, ...]
    _records: dict[str, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def store(self) -> StageStore:
        """The folders of its stages."""
        return StageStore(self.run, self.recipe.stages)

    def stage(self, name: str) -> Stage:
        """A stage of the recipe."""
        return self.recipe.stages[name]

    def record(self, name: str) -> dict[str, Any]:
        """The stage.json of a stage, as it was when it was first read."""
        if name not in self._records:
            self._records[name] = self.store.record(name)
        return self._records[name]

    def check(self) -> None:
        """Raise RecipeError with all reasons why stages cannot be verified, as far as the run's folder tells."""
        refuse(self.run, [reason for name in self.names for reason in self._reasons(name)])

    def _reasons(self, name: str) -> Iterator[str]:
        record = self.record(name)
        if problem := self._unusable(name):
            yield problem
            return
        for upstream, recorded in record["depends_on"]["upstream"].items():
            if upstream not in self.recipe.stages:
                yield f"stage '{name}' depends on stage '{upstream}', which {self.run / RECIPE} does not have"
            elif problem := self._unusable(upstream):
                yield f"stage '{name}' depends on another: {problem}"
            elif self.record(upstream)["hash"] != recorded:
                yield f"stage '{name}' was made from another result of stage '{upstream}' than the run has now"

    def _unusable(self, name: str) -> str:
        """Why the result of a stage cannot be compared or used; empty if it can."""
        if not (self.store.path(name) / "stage.json").is_file():
            return f"stage '{name}' has no result yet"
        if damage := self.store.damage(name):
            return f"stage '{name}' is damaged: {damage}"
        return "" if self.record(name).get("complete") else f"stage '{name}' is not finished"


def find(text: str, load: Callable[[Path], Recipe]) -> Recorded:
    """The run and stages that `RUN` or `RUN/STAGE` means. Raises RecipeError if there are none.

    load: reads a recipe.
    """
    path = Path(text)
    if (path / RECIPE).is_file():
        run, name = path, ""
    elif (path.parent / RECIPE).is_file():
        run, name = path.parent, path.name
    else:
        refuse(path, [f"{text} is neither a run nor a stage of one: no {RECIPE} is there"])
    if name and not re.match(NAME_PATTERN, name):
        refuse(run, [f"'{name}' is not the name of a stage; its kept versions are compared with it"])
    recipe = load(run / RECIPE)
    if name and name not in recipe.stages:
        listed = did_you_mean(name, recipe.stages) or f"stages: {', '.join(recipe.stages)}"
        refuse(run, [f"{run} has no stage '{name}'; {listed}"])
    return Recorded(run, recipe, (name,) if name else tuple(recipe.stages))


def refuse(run: Path, reasons: list[str]) -> None:
    """Raise RecipeError if there are reasons: nothing was started."""
    if not reasons:
        return None
    help = "name the folder of a run, such as runs/quickstart, or one of its stages, such as runs/quickstart/align"
    if (run / RECIPE).is_file():
        help = f"name another stage, as in `alignkit verify {run}/STAGE`, or run the recipe again"
    raise RecipeError(Problem(reason, help=help if reason is reasons[-1] else "") for reason in reasons)


def changed_inputs(stage: Stage, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The inputs of a stage that are not what they were, in words. before, now: the parts of its hash."""
    found = []
    for change in changes(before, now):
        if change.path[0] in _ENVIRONMENT or of_code(change):
            continue
        if _is_digest(change):
            place = _value_at(stage, change.path)
            name = ".".join(map(str, change.path)).removeprefix("settings.").removeprefix("component.options.")
            found.append(f"{name}{f' ({place})' if place else ''} has changed")
        else:
            found.append(f"the recipe has other keys: {shown(change)}")
    return found


def of_code(change: Change) -> bool:
    """Whether a plugin's code or version has changed."""
    return any(key in _CODE for key in change.path[1:])


def _is_digest(change: Change) -> bool:
    values = (change.old, change.new)
    return any(isinstance(value, dict) or (isinstance(value, str) and _DIGEST.fullmatch(value)) for value in values)


def _value_at(stage: Stage, path: tuple[str | int, ...]) -> str:
    """The file that a stage's settings or options name at a path of the parts; empty if it is none."""
    value: Any = stage
    for key in path:
        if isinstance(value, Path):
            break
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(key, int) and isinstance(value, list | tuple) and key < len(value):
            value = value[key]
        else:
            value = getattr(value, str(key), None)
    return str(value) if isinstance(value, Path) else ""
