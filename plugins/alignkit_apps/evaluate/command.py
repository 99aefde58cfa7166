"""The command `alignkit evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkit.commands import Result, refuse
from alignkit_apps.catalog.printing import Judges, Rewards


def evaluate(
    policies: Annotated[
        list[str],
        typer.Argument(
            metavar="POLICY",
            help="RUN/STAGE, RUN/align@ppo, RUN/base, a folder with a model, or a model's id on the hub; "
            "then overrides, KEY=VALUE.",
        ),
    ],
    prompts: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="Held-out prompts: a file, or data as in a recipe: '{gsm8k: FILE}' names its format."
        ),
    ],
    reward: Rewards = None,
    judge: Judges = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="POLICY", help="Compare with this one. Default: as in the step.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the run. Default: runs/evaluate.")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Use only the first N prompts.")] = None,
) -> Result:
    """Compare any policies on held-out prompts, without a recipe.

    It is a run with one step, `evaluate`: the recipe is in its folder, and the same command resumes it. Policies answer
    at temperature 0.7, and else as the first one did that learned from its own samples.

    \b
    Examples:
      alignkit evaluate RUN/sft RUN/align --prompts p.jsonl --reward RUN/helpful
      alignkit evaluate RUN/base RUN/align --prompts p.jsonl --reward length
    """
    if not reward and not judge:
        refuse(
            "nothing says which answers are better", "add --reward REWARD, such as --reward length, or --judge JUDGE"
        )
    from alignkit.plugins import load_plugins
    from alignkit.recipe.load import made_recipe
    from alignkit.runs.services import begin, folder_of
    from alignkit.runs.start import result_of
    from alignkit_apps.policies.recipe import models_of, recipe_of, without_overrides

    load_plugins()
    words, overrides = without_overrides(policies)
    if baseline is not None and baseline not in words:
        words.append(baseline)
    named = models_of(words, reward or (), judge or ())
    recipe = made_recipe(recipe_of(named, prompts, baseline, limit), "alignkit evaluate", overrides)
    folder = folder_of(recipe, out)
    reporter = begin(recipe, folder)
    from alignkit.runs.run import run_recipe  # imports torch

    run_recipe(recipe, folder, reporter)
    return Result("run", result_of(recipe, folder))
