"""Whether a policy learned from a reward or a judge, which then cannot say whether the policy is better.

A policy learned from what occurs in its stage, or in a stage before it: the rewards and judges of training, of labels,
of filters and of chosen samples. A reward model is also its own if both learned from the same pairs. `gold` counts if
it chooses the result, by `stop`, and not if it only watches.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignkit.data.sources import DataSpec
from alignkit.errors import AlignkitError
from alignkit.io.lookup import is_file
from alignkit.io.stage_results import is_result_name
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import BASE, Recipe, RewardSpec, Stage, fields_of, specs
from alignkit.registry import Component
from alignkit.runs.files import RECIPE

WHICH = ("model", "base_url", "folder", "path", "module", "function", "role", "label", "language", "pattern")
Marks = frozenset[str]  # what tells raters and their data from each other


def learned_from(policy: str, rater: Any, recipe: Recipe, run: Path | None = None) -> bool | None:
    """Whether a policy of a recipe learned from a RewardRef or JudgeRef; None if that is not known.

    run: the recipe's run; None if there is none yet.
    """
    lineage = _Lineage(recipe, run or recipe.folder / ".run")
    known = lineage.of_policy(policy)
    return None if known is None else bool(known & lineage.of_rater(rater))


class _Lineage:
    """The marks of a recipe's stages. run: the folder in which they are."""

    def __init__(self, recipe: Recipe, run: Path):
        self.recipe, self.run = recipe, run.resolve()

    def of_policy(self, policy: str) -> Marks | None:
        """Everything that a policy learned from; None if a part of that is not known."""
        if is_result_name(policy):
            return None  # of a stage as it was written before
        name = policy.partition("@")[0]
        if name == BASE or name in self.recipe.bases:
            return self._of_base(name)
        if name in self.recipe.stages:
            return self._of_stage(name)
        return _in_other_run(Path(policy), lambda other, stage: other._of_stage(stage))

    def _of_base(self, name: str) -> Marks | None:
        """A base learned from nothing of ours, unless another run made it."""
        base = self.recipe.base(name).base
        made = is_file(_stage_folder(Path(base)).parent / RECIPE)
        return _in_other_run(Path(base), lambda other, stage: other._of_stage(stage)) if made else frozenset()

    def _of_stage(self, name: str) -> Marks | None:
        of_base = self._of_base(self.recipe.stages[name].base)
        if of_base is None:
            return None
        found = set(of_base)
        names, seen = [name], set[str]()
        while names:
            stage = self.recipe.stages[names.pop()]
            if stage.name in seen:
                continue
            seen.add(stage.name)
            for folder in stage.folders:
                other = self.of_policy(folder)
                if other is None:
                    return None
                found |= other
            watched = {spec.name for spec in specs(_gold(stage), RewardSpec) if spec.kind == "stage"}
            used = {spec.name for spec in specs(_teaching(stage), RewardSpec) if spec.kind == "stage"}
            names += [before for before in stage.upstream if before not in watched - used]
            found |= self._marks(_teaching(stage))
            if stage.needs is not None and stage.needs.pairs:
                found |= _pairs_of(stage)
        return frozenset(found)

    def of_rater(self, rater: Any) -> Marks:
        """The marks of a reward or judge, and those of the pairs that a reward model learned from."""
        found = set(self._marks(rater))
        for spec in specs(rater, RewardSpec):
            if spec.kind == "stage":
                found |= _pairs_of(self.recipe.stages[spec.name.partition("@")[0]])
            elif spec.kind == "folder":
                pairs = _in_other_run(Path(spec.name), lambda other, name: _pairs_of(other.recipe.stages[name]))
                found |= pairs or frozenset()
        return frozenset(found)

    def _marks(self, value: Any) -> Marks:
        """The models and plugins that rate, without combinations, which only add up."""
        found = set()
        for spec in specs(value, RewardSpec):
            if spec.kind == "stage":
                found.add(f"model {self.run / spec.name.partition('@')[0]}")
            elif spec.kind == "folder":
                found.add(f"model {_stage_folder(Path(spec.name))}")
        rewards = [spec.component for spec in specs(value, RewardSpec) if spec.kind == "reward" and spec.component]
        judges = [component for component in specs(value, Component) if component.kind == "judge"]
        for component in (*rewards, *judges):
            if not _asks(component):
                found.add(f"{component.kind} {component.name} {_which(component)}")
        return frozenset(found)


def _asks(component: Component) -> bool:
    """Whether a reward or judge only passes on what others say."""
    others = [part for part in specs(component.options, Component) if part.kind in ("reward", "judge")]
    return bool(others or specs(component.options, RewardSpec))


def _which(component: Component) -> str:
    """The model, the file or the words behind a reward or judge. Other options make it no other one."""
    options = fields_of(component.options)
    return " ".join(f"{key}={options[key]}" for key in WHICH if options.get(key))


def _teaching(stage: Stage) -> list[Any]:
    """The settings and options of a stage, without a `gold` that only watches."""
    settings = fields_of(stage.settings) if stage.settings is not None else {}
    watches = set() if _chooses(stage) else {"gold"}
    return [{key: value for key, value in settings.items() if key not in watches}, stage.component.options]


def _chooses(stage: Stage) -> bool:
    """Whether `gold` decides which policy is the stage's result."""
    stop = getattr(stage.settings, "stop", None)
    return stop is not None and bool(stop.gold or stop.hacking)


def _gold(stage: Stage) -> Any:
    return getattr(stage.settings, "gold", None)


def _pairs_of(stage: Stage) -> Marks:
    """The files and hub data sets of a stage's preference data."""
    if stage.settings is None or stage.settings.data is None:
        return frozenset()
    sources = [source for spec in specs(stage.settings.data, DataSpec) for source in spec.sources]
    named = [source.path or source.hub or f"stage {source.stage}" for source in sources]
    return frozenset(f"pairs {name}" for name in named)


def _stage_folder(folder: Path) -> Path:
    """RUN/STAGE of the weights of a run: RUN/STAGE/adapter or RUN/STAGE/kept/K; any other folder stays."""
    folder = folder.resolve()
    if folder.parent.name == "kept":
        return folder.parent.parent
    return folder.parent if folder.name in ("adapter", "model") else folder


def _in_other_run(folder: Path, read: Callable[[_Lineage, str], Marks | None]) -> Marks | None:
    """What `read` finds for the stage of another run that made a model; None if that is not known."""
    stage = _stage_folder(folder)
    if not is_file(stage.parent / RECIPE):
        return None
    try:
        other = _Lineage(load_recipe(stage.parent / RECIPE), stage.parent)
    except AlignkitError:
        return None
    return read(other, stage.name) if stage.name in other.recipe.stages else None
