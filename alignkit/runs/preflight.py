"""Before the first stage: what rewards and data can be told to be wrong without training anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from alignkit.data.group import resolved_pairs
from alignkit.data.sources import DataSpec, Loaded
from alignkit.errors import AlignkitError, DataError, Problem, RecipeError, RunFailed
from alignkit.external import ExternalTrainer
from alignkit.recipe.schema import Recipe, RewardSpec, Stage, specs


def check_models(recipe: Recipe, stages: Sequence[Stage]) -> None:
    """Let foreign trainers refuse the recipe's model before anything is trained."""
    for stage in stages:
        if isinstance(kind := stage.component.registration.implementation, type) and issubclass(kind, ExternalTrainer):
            try:
                kind(stage.component.options).check_model(recipe.model)
            except RunFailed as error:
                raise RecipeError([Problem(f"stage '{stage.name}': {error}", str(recipe.path))]) from error


def check_rewards(recipe: Recipe, stages: Sequence[Stage]) -> None:
    """Let rewards raise what they know before anything is loaded or trained; all of it at once."""
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
    """Read every file that these stages will want, before anything is trained: bad rows cost no training."""
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
    if any(source.path is None for source in spec.sources):  # a stage or the hub may give what the files have not
        return
    if not any(resolved_pairs(group) for part in (loaded.groups, loaded.validation) for group in part):
        raise DataError(
            f"stage '{stage.name}': {stage.component.name} learns from pairs of a better and a worse response, and "
            f"no row of {spec.sources[0].path} has one"
        )
