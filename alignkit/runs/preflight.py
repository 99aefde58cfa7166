"""Checks models, rewards and data before the first stage runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from alignkit.author import calling, made
from alignkit.data.describe import source_lines
from alignkit.data.group import resolved_pairs
from alignkit.data.sources import DataSpec, Loaded
from alignkit.errors import AlignkitError, DataError, PluginError, Problem, RecipeError, RunFailed
from alignkit.external import ExternalTrainer
from alignkit.recipe.schema import Recipe, RewardSpec, Stage, specs
from alignkit.runs.data import RunData


def check_models(recipe: Recipe, stages: Sequence[Stage]) -> None:
    """Let external trainers reject the recipe's model. Raises RecipeError."""
    for stage in stages:
        kind = stage.component.registration.implementation
        if isinstance(kind, type) and issubclass(kind, ExternalTrainer):
            try:
                trainer, author = made(stage.component, stage.name)
                with calling(author, "check_model", trainer):
                    trainer.check_model(recipe.model)
            except RunFailed as error:
                raise RecipeError([Problem(f"stage '{stage.name}': {error}", str(recipe.path))]) from error


def check_rewards(recipe: Recipe, stages: Sequence[Stage]) -> None:
    """Let rewards check their options and files. Raises RecipeError with every problem."""
    problems: list[Problem] = []
    for stage in stages:
        for spec in specs([stage.settings, stage.component.options], RewardSpec):
            if spec.kind != "reward" or spec.component is None:
                continue
            try:
                reward, author = made(spec.component, stage.name)
                with calling(author, "check", reward):
                    reward.check(recipe.folder)
            except PluginError:
                raise
            except AlignkitError as error:
                problem = Problem(f"stage '{stage.name}': {error}", str(recipe.path))
                problems += [problem] if problem not in problems else []
    if problems:
        raise RecipeError(problems)


def check_data(stages: Sequence[Stage], load: Callable[[Stage, DataSpec], Loaded]) -> None:
    """Read every data file of these stages, so that a bad row is found before anything is trained."""
    for stage in stages:
        for spec in specs([stage.settings, stage.component.options], DataSpec):
            files = tuple(source for source in spec.sources if source.path is not None)
            if files:
                whole = len(files) == len(spec.sources)
                _check_pairs(stage, spec, load(stage, spec if whole else DataSpec(files)))


def data_lines(recipe: Recipe) -> list[str]:
    """What a run would understand of its data files. Raises DataError if it would stop at them."""
    stages = list(recipe.stages.values())
    data = RunData(_no_stage, recipe.seed)
    shown: dict[str, None] = {}  # an ordered set: stages share files

    def load(stage: Stage, spec: DataSpec) -> Loaded:
        loaded = data.read(spec)
        for header, *sample in map(source_lines, loaded.sources):
            rows = "\n".join(sample)
            known = any(text.endswith(rows) for text in shown)
            shown[header if known else f"{header}\n{rows}".strip()] = None
        return loaded

    check_data(stages, load)
    entries = (spec for stage in stages for spec in specs([stage.settings, stage.component.options], DataSpec))
    hub = {source.name: None for spec in entries for source in spec.sources if source.hub}
    return [*shown, *(f"not read yet: {name}, which the run downloads" for name in hub)]


def _no_stage(name: str) -> Path:
    raise DataError(f"the data of stage '{name}' do not exist yet")


def _check_pairs(stage: Stage, spec: DataSpec, loaded: Loaded) -> None:
    settings, needs = stage.settings, stage.needs
    if settings is None or needs is None or spec is not settings.data or not needs.pairs:
        return
    if any(source.path is None for source in spec.sources):  # a stage or the hub may have the pairs
        return
    if not any(resolved_pairs(group) for part in (loaded.groups, loaded.validation) for group in part):
        raise DataError(
            f"stage '{stage.name}': {stage.component.name} learns from pairs of a better and a worse response, "
            f"but no row of {spec.sources[0].path} has a pair"
        )
