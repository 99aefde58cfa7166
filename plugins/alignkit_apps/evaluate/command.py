"""The command `alignkit evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignkit.arguments import refuse
from alignkit.outcome import Result
from alignkit_apps.catalog.printing import Judges, Rewards

if TYPE_CHECKING:
    from alignkit.registry import Registry
    from alignkit_apps.policies.recipe import Request

Prompts = Annotated[
    str,
    typer.Option(
        metavar="FILE", help="Held-out prompts: a file, or data as in a recipe: '{gsm8k: FILE}' names its format."
    ),
]
Baseline = Annotated[str | None, typer.Option(metavar="POLICY", help="Compare with this one. Default: as in the step.")]


def evaluate(
    policies: Annotated[
        list[str],
        typer.Argument(
            metavar="POLICY",
            help="RUN/STAGE, RUN/align@ppo, RUN/base, a folder with a model, or a model's id on the hub; "
            "then overrides, KEY=VALUE.",
        ),
    ],
    prompts: Prompts,
    reward: Rewards = None,
    judge: Judges = None,
    baseline: Baseline = None,
    reference: Annotated[
        str | None, typer.Option(metavar="POLICY", help="Measure the KL to this one. Default: the baseline.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the run. Default: runs/evaluate.")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Use only the first N prompts.")] = None,
    samples: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Responses of each policy to each prompt.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Longest response. Default: as the first policy was trained.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="T", min=0, help="Of sampling. Default: as the first policy was trained.")
    ] = None,
) -> Result:
    """Compare any policies on held-out prompts, without a recipe.

    It is a run with one step, `evaluate`: the recipe is in its folder, and the same command resumes it.

    \b
    Examples:
      alignkit evaluate RUN/sft RUN/align --prompts p.jsonl --reward RUN/helpful
      alignkit evaluate RUN/base RUN/align --prompts p.jsonl --reward length
      alignkit evaluate '{policy: RUN/sft, best_of: 4, reward: RUN/helpful}' \\
        '{policy: RUN/base, few_shot: d.jsonl}' --prompts p.jsonl --reward length
    """
    given = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    sampling = {key: value for key, value in given.items() if value is not None}
    more = {"limit": limit, "samples_per_prompt": samples, "sampling": sampling or None}
    options = {key: value for key, value in more.items() if value is not None}
    if not reward and not judge:
        refuse(
            "nothing says which answers are better", "add --reward REWARD, such as --reward length, or --judge JUDGE"
        )
    from alignkit.plugins import load_plugins
    from alignkit_apps.policies.recipe import Request, without_overrides

    words, overrides = without_overrides(policies)
    request = Request(words, prompts, reward or (), judge or (), baseline, reference, options)
    return _evaluate(request, overrides, out, load_plugins().registry)


def _evaluate(request: Request, overrides: list[str], out: Path | None, registry: Registry) -> Result:
    from alignkit.io.printable import printable
    from alignkit.recipe.load import made_recipe
    from alignkit.runs.startup import begin, result_of
    from alignkit_apps.policies.recipe import recipe_of

    data, notes = recipe_of(request)
    recipe = made_recipe(data, "alignkit evaluate", overrides, registry)
    folder, reporter = begin(recipe, out)
    for note in notes:
        reporter.say(printable(f"note: {note}"))
    from alignkit.runs.run import run_recipe  # imports torch

    run_recipe(recipe, folder, reporter)
    return result_of(recipe, folder)
