"""Checks models, rewards and data before the first stage runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from alignkit.data.group import resolved_pairs
from alignkit.data.sources import DataSpec, Loaded
from alignkit.errors import AlignkitError, DataError, Problem, RecipeError, RunFailed
from alignkit.external import ExternalTrainer
from alignkit.recipe.schema import Recipe, RewardSpec, Stage, specs


def check_models(recipe: Recipe, stages: Sequence[Stage]) -> None:
    """Let external trainers reject the recipe's model. Raises RecipeError."""
    for stage in stages:
        trainer = stage.component.registration.implementation
        if isinstance(trainer, type) and issubclass(trainer, ExternalTrainer):
            try:
                trainer(stage.component.options).check_model(recipe.model)
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
                spec.component.registration.implementation(spec.component.options).check(recipe.folder)
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
