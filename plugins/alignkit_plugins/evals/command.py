"""The command `alignkit evaluate`."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from alignkit.contract.commands import Result, argument, option
from alignkit.errors import did_you_mean, refuse
from alignkit_plugins.command_line.printing import Judges, Rewards

ADD_REWARD = "add --reward REWARD, such as RUN/helpful of a reward model, exact_match or length"


def evaluate(
    words: Annotated[
        list[str],
        argument(
            "POLICY...|FILE",
            (
                "Policies to compare: RUN/STAGE, RUN/align@ppo, RUN/base, a folder with a model, "
                "or a model's id on the hub. Or a file of answers to score, in any format. Then "
                "overrides, KEY=VALUE."
            ),
        ),
    ],
    prompts: Annotated[
        str | None,
        option(
            "FILE",
            (
                "Held-out prompts for the policies: a file, or data as in a recipe: '{gsm8k: "
                "FILE}' names its format."
            ),
        ),
    ] = None,
    reward: Rewards = None,
    judge: Judges = None,
    baseline: Annotated[
        str | None,
        option("POLICY", "Policy that the others are compared with. Default: as in the step."),
    ] = None,
    out: Annotated[
        Path | None,
        option(
            "DIR|FILE",
            (
                "Folder of the run, by default runs/evaluate; or file for the scores of answers, "
                "by default stdout."
            ),
        ),
    ] = None,
    limit: Annotated[
        int | None,
        option("N", "Use only the first N prompts, or the first N examples of FILE.", min=1),
    ] = None,
) -> Result:
    """Compare policies on held-out prompts, or score given answers.

    Comparing is a run with one step, `evaluate`: the recipe is in its folder, and the same command
    resumes it. Policies answer at temperature 0.7, and else as the first one did that learned from
    its own samples.

    Scoring writes a line of JSON per example, with the scores of its responses, and then the mean
    of each reward with its interval; of pairs also how often the better response scores higher.

    \b
    Examples:
      alignkit evaluate RUN/sft RUN/align --prompts p.jsonl --reward RUN/helpful
      alignkit evaluate RUN/base RUN/align --prompts p.jsonl --reward length
      alignkit evaluate answers.jsonl --reward exact_match --out scores.jsonl
      alignkit evaluate pairs.jsonl --reward RUN/helpful --reward RUN/safety
    """
    from alignkit_plugins.command_line.words import read_words, recipe_of, split_overrides

    names, overrides = split_overrides(words)
    if prompts is None:
        _check_answers(names, bool(judge or baseline))
    if not reward and not judge:
        what = "nothing says which answers are better" if prompts else "nothing scores the answers"
        refuse(what, f"{ADD_REWARD}; or --judge JUDGE" if len(names) > 1 else ADD_REWARD)
    if prompts is None:
        print("loading torch and transformers", file=sys.stderr)
        from alignkit_plugins.serving import files  # imports torch

        named = read_words((), reward or (), data=names[0])
        return files.answer_and_score(named, overrides, out, limit)
    if baseline is not None and baseline not in names:
        names.append(baseline)
    named = read_words(names, reward or (), judge or ())
    return _run(recipe_of(named, prompts, baseline, limit), overrides, out)


def _check_answers(names: Sequence[str], compares: bool) -> None:
    """Raise RecipeError unless the words are one file of answers, which nothing compares."""
    from alignkit_plugins.command_line.find import is_model

    if policies := list(filter(is_model, names)):
        refuse(f"{policies[0]} needs prompts to answer", "add --prompts FILE")
    if len(names) != 1 or compares:
        what = "without --prompts, one file of answers is scored by rewards"
        refuse(what, "alignkit evaluate FILE --reward REWARD")


def _run(recipe_keys: Mapping[str, Any], overrides: Sequence[str], out: Path | None) -> Result:
    """Run a recipe of one step. overrides: of the recipe, or of options of the step."""
    from alignkit.contract.settings import KEYS
    from alignkit.host.plugins import plugins
    from alignkit.recipe.load import build
    from alignkit.recipe.yaml import dump, parse_document
    from alignkit.runs.services import begin, folder_of
    from alignkit.runs.start import result_of
    from alignkit_plugins.command_line.words import STAGE
    from alignkit_plugins.evals.step import Evaluate

    known, placed = [*Evaluate.Options.model_fields, *KEYS], list[str]()
    for text in overrides:  # one that begins nearly as an option of the step belongs to it
        first = re.split(r"[.=]", text.lstrip("~"))[0]
        place = f"stages.{STAGE}." if did_you_mean(first, known) else ""
        placed.append(re.sub("^~?", rf"\g<0>{place}", text))
    document = parse_document(dump(recipe_keys), Path("alignkit evaluate"), placed)
    recipe = build(document, plugins())
    folder = folder_of(recipe, out)
    reporter = begin(recipe, folder)
    from alignkit.runs.run import run_recipe  # imports torch

    run_recipe(recipe, folder, reporter)
    return Result("run", result_of(recipe, folder))
