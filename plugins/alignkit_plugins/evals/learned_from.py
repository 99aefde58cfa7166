"""What a model learned from, and who then cannot say whether it is better: a reward, a judge,
prompts that it has seen.

A policy learned from what occurs in its stage, or in a stage before it: the rewards and judges of
training, of labels, of filters and of chosen samples. A reward model is also its own if both
learned from the same pairs, but not if from shares of a file that do not overlap. A
monitor's reward, such as `gold`, counts if it chooses the result by `stop`, not if it only watches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from alignkit.contract.step import StepContext
from alignkit.data.group import Group, prompts_of
from alignkit.errors import AlignkitError, DataError
from alignkit.evaluation.split import loose_key
from alignkit.host.registry import Component
from alignkit.io.results import RECIPE, read_record, stage_folder
from alignkit.io.text import is_file
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import BASE, Recipe, RewardSpec, Stage, specs
from alignkit.recipe.sources import DataSpec
from alignkit_plugins.command_line.find import is_result_name


def learned_from(
    policy: str, rater: Any, recipe: Recipe, run: Path, chosen_by: Any = None
) -> bool | None:
    """Whether a policy of a recipe learned from a RewardRef or JudgeRef; None if that is not known.

    run: the recipe's run. chosen_by: the reward that chooses among the policy's samples, from
    which its answers then learned, too.
    """
    learned = _raters(chosen_by, run)
    for model in (policy, *_reward_models(chosen_by)):
        known = _teachers(model, recipe, run)
        if known is None:
            return None
        learned |= known
    rates = _raters(rater, run)
    for model in _reward_models(rater):
        if origin := _origin(model, recipe, run):
            rates |= _pairs_of(origin[0].stages[origin[2]])
    return bool(learned & rates)


def _origin(name: str, recipe: Recipe, run: Path) -> tuple[Recipe, Path, str] | None:
    """The recipe, the run and the name of the stage that made a model; None if that is not
    known.
    """
    stage = name.partition("@")[0]
    if stage in recipe.stages:
        return recipe, run, stage
    folder = stage_folder(Path(name))
    try:
        other = load_recipe(folder.parent / RECIPE)
    except AlignkitError:
        return None
    return (other, folder.parent, folder.name) if folder.name in other.stages else None


def _teachers(policy: str, recipe: Recipe, run: Path) -> set[str] | None:
    """What a policy learned from; None if a part of that is not known."""
    if policy == BASE:  # learned from nothing, unless another run made it
        base = stage_folder(Path(recipe.model.base))
        made = is_file(base.parent / RECIPE)
        return _teachers(str(base), recipe, run) if made else set()
    # A result that has another one's name is of the stage as it was written before
    origin = None if is_result_name(policy) else _origin(policy, recipe, run)
    if origin is None:
        return None
    recipe, run, name = origin
    learned = _teachers(BASE, recipe, run)
    if learned is None:
        return None
    names, seen = [name], set[str]()
    while names:
        name = names.pop()
        if name in seen:
            continue
        seen.add(name)
        stage = recipe.stages[name]
        if stage.folders:
            return None
        teaching = _teaching(stage)
        watching = set(_reward_models(stage.settings)).difference(_reward_models(teaching))
        names += set(stage.upstream) - watching
        learned |= _raters(teaching, run)
        if stage.needs is not None and stage.needs.pairs:
            learned |= _pairs_of(stage)
    return learned


def _teaching(stage: Stage) -> list[Any]:
    """The settings and options of a stage, without the monitors that only watch."""
    settings = dict(stage.settings or ())
    monitors = settings.pop("monitors", None) or ()
    for monitor in monitors:
        if getattr(monitor.options, "stop", True):
            settings[monitor.name] = monitor
    return [settings, stage.component.options]


def _reward_models(value: Any) -> list[str]:
    """The stages and folders of the reward models that a value names."""
    models = list[str]()
    for spec in specs(value, RewardSpec):
        if spec.kind == "stage":
            models.append(spec.name.partition("@")[0])
        elif spec.kind == "folder":
            models.append(spec.name)
    return models


def _raters(value: Any, run: Path) -> set[str]:
    """The models and plugins that rate, without combinations, which only add up."""
    raters = set[str]()
    for model in _reward_models(value):
        raters.add(str(stage_folder(run / model)))
    components = list[Component]()
    for component in specs(value, Component):
        if component.kind == "judge":
            components.append(component)
    for spec in specs(value, RewardSpec):
        if spec.component is not None:
            components.append(spec.component)
    for component in components:
        parts = specs(component.options, Component)
        passes_on = any(part.kind in ("reward", "judge") for part in parts)
        if not passes_on and not specs(component.options, RewardSpec):
            grader = getattr(component.options, "grader", component.name)
            raters.add(f"{component.kind} {grader}")
    return raters


def _pairs_of(stage: Stage) -> set[str]:
    """The files and hub data sets of a stage's preference data, each hundredth that it reads of
    them.
    """
    pairs = set[str]()
    sources = stage.settings.data.sources if stage.settings and stage.settings.data else ()
    for source in sources:
        low, high = source.part or (0, 1)
        for percent in range(round(low * 100), round(high * 100)):
            pairs.add(f"{source.path or source.hub or source.stage} {percent}")
    return pairs


# Prompts


def trained_prompts(
    context: StepContext, model: Any, prompts: Sequence[Group]
) -> dict[str, set[int]]:
    """The places of the prompts in the data of each stage that trained or chose a model; stages
    without any are left out.

    model: a policy, or a reward with any number of reward models. A model's stages are its own and
    those that its starting weights come from, also in another run, as far as its files are still
    there. Prompts are equal if they say the same, or are one row of a file in the words of two
    templates.
    """
    if context.recipe is None:
        return {}
    places: dict[str, list[int]] = {}
    for place, group in enumerate(prompts):
        for key in _same(group):
            places.setdefault(key, []).append(place)
    names = [model] if isinstance(model, str) else _reward_models(model)
    trained: dict[str, set[int]] = {}
    for name in names:
        for title, stage in _trained_stages(name, context.recipe, context.out.parent):
            groups = _read_by(stage, context, title == stage.name)
            # A dialogue is learned from its first answer on, and asked about at its last.
            for group in (*groups, *prompts_of(groups)):
                for key in _same(group):
                    if seen := places.get(key):
                        trained.setdefault(title, set()).update(seen)
    return trained


def _same(group: Group) -> Iterator[str]:
    """What is the same for one prompt in other words: what it says, and the row of its file."""
    yield loose_key(group)
    if group.origin is not None:
        yield str(group.origin)


def _trained_stages(name: str, recipe: Recipe, run: Path) -> Iterator[tuple[str, Stage]]:
    """The stages that trained or chose a model, latest first, with their names; those of another
    run have its name in front.
    """
    home, model = run, name
    while model and (origin := _origin(model, recipe, run)):
        recipe, run, name = origin
        stage = recipe.stages[name]
        yield (name if run == home else f"{run.name}/{name}"), stage
        if stage.settings is None:
            model = read_record(run / name).get("policy") or ""
        else:
            model = stage.settings.from_ or ""


def _read_by(stage: Stage, context: StepContext, own: bool) -> list[Group]:
    """What a stage trained on, or chose by. own: of this run; of another one, what its stages made or what is
    gone is left out.
    """
    groups = list[Group]()
    settings: Any = stage.settings
    read: Any = stage.component.options
    if settings is not None:
        read = [settings.data, settings.prompts, settings.mix]
    for spec in specs(read, DataSpec):
        if own or not any(source.stage for source in spec.sources):
            with suppress(DataError):
                groups += context.read(spec)
    return groups


def log_odds(reward: RewardSpec, run: Path) -> bool:
    """Whether the differences of a reward model's scores are log-odds, as the stage that trained it
    says (`Algorithm.log_odds`).
    """
    if reward.kind not in ("stage", "folder"):
        return False
    folder = stage_folder(run / reward.name.partition("@")[0])
    return read_record(folder).get("log_odds") is True


def training_data_note(
    context: StepContext,
    trained: Iterable[Mapping[str, set[int]]],
    groups: Sequence[Group],
    what: str = "prompts",
) -> list[str]:
    """A warning of groups that models learned from, which is said as well; none without any.

    trained: of each model, what `trained_prompts` says. what: the name of groups.
    """
    seen: dict[str, set[int]] = {}
    for one in trained:
        seen |= one
    if not seen:
        return []
    stages = ", ".join(f"{len(places)} by {stage}" for stage, places in seen.items())
    count = len(set().union(*seen.values()))
    note = f"warning: {count} of {len(groups)} {what} are training data ({stages})"
    context.say(f"{context.out.name}: {note}")
    return [note]
