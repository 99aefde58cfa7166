"""The results that stages name like `align@ppo`."""

from __future__ import annotations

from pathlib import Path

from alignkit.io.stage_results import find_result, is_result_name, results_of_stage
from alignkit.recipe.schema import Recipe, Stage


def result_hashes(stage: Stage, recipe: Recipe, run: Path) -> dict[str, str]:
    """The hashes of the results that a stage names like `align@ppo`. Raises RecipeError for one that is not there.

    One that the recipe's own stage will make when it runs is left out.
    """
    found = {}
    for name in filter(is_result_name, stage.roles):
        made, _, wanted = name.partition("@")
        known = {result.name for result in results_of_stage(run, made)}
        if name in known or recipe.stages[made].component.name != wanted:
            found[name] = find_result(run, name).hash
    return found
