"""What a model learned from, and who then cannot say whether it is better: a reward, a judge,
prompts that it has seen.

A policy learned from what occurs in its stage, or in a stage before it: the rewards and judges of
training, of labels, of filters and of chosen samples. A reward model is also its own if both
learned from the same pairs, but not if from shares of a file that do not overlap. That of a
monitor, such as `gold`, counts if it chooses the result, by `stop`, and not if it only watches.

An evaluation on prompts that were trained on says little about others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from alignkit.data.group import Group, prompts_of, sha256_of
from alignkit.data.sources import DataSpec
from alignkit.errors import AlignkitError, DataError
from alignkit.io.results import RECIPE, Results, is_result_name, read_record, stage_folder
from alignkit.io.text import is_file
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import BASE, Recipe, RewardSpec, Stage, specs
from alignkit.registry import Component
from alignkit.step import StepContext, StepData

WHICH = (
    "model",
    "base_url",
    "folder",
    "path",
    "module",
    "function",
    "role",
    "label",
    "language",
    "pattern",
)
Marks = frozenset[str]  # what tells raters and their data from each other


def learned_from(policy: Any, rater: Any, recipe: Recipe, run: Path | None = None) -> bool | None:
    """Whether a policy of a recipe learned from a RewardRef or JudgeRef; None if that is not known.

    policy: or a rater, which has learned from what it consists of. run: the recipe's run; None if
    there is none yet.
    """
    lineage = _Lineage(recipe, run or recipe.folder / ".run")
    known = lineage.of_policy(policy) if isinstance(policy, str) else lineage.of_rater(policy)
    return None if known is None else bool(known & lineage.of_rater(rater))


def learned_by(step: StepContext | StepData) -> Callable[[Any, Any], bool | None]:
    """`learned_from` for the recipe of a step, before its run or in it."""
    run = step.out.parent if isinstance(step, StepContext) else None
    if step.recipe is None:
        return lambda policy, rater: None
    return partial(learned_from, recipe=step.recipe, run=run)


class _Lineage:
    """The marks of a recipe's stages. run: the folder in which they are. seed: of the recipe that
    asks.
    """

    def __init__(self, recipe: Recipe, run: Path, seed: int | None = None):
        self.recipe, self.run = recipe, run.resolve()
        self.seed = recipe.seed if seed is None else seed

    def of_policy(self, policy: str) -> Marks | None:
        """Everything that a policy learned from; None if a part of that is not known."""
        if is_result_name(policy):
            return None  # of a stage as it was written before
        name = policy.partition("@")[0]
        if name == BASE:
            return self._of_base()
        if name in self.recipe.stages:
            return self._of_stage(name)
        return self._in_other_run(Path(policy), lambda other, stage: other._of_stage(stage))

    def _of_base(self) -> Marks | None:
        """A base learned from nothing of ours, unless another run made it."""
        base = self.recipe.model.base
        made = is_file(stage_folder(Path(base)).parent / RECIPE)
        return (
            self._in_other_run(Path(base), lambda other, stage: other._of_stage(stage))
            if made
            else frozenset()
        )

    def _of_stage(self, name: str) -> Marks | None:
        of_base = self._of_base()
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
            watched = {
                spec.name for spec in specs(stage.settings, RewardSpec) if spec.kind == "stage"
            }
            used = {
                spec.name for spec in specs(_teaching(stage), RewardSpec) if spec.kind == "stage"
            }
            names += [before for before in stage.upstream if before not in watched - used]
            found |= self._marks(_teaching(stage))
            if stage.needs is not None and stage.needs.pairs:
                found |= self._pairs_of(stage)
        return frozenset(found)

    def of_rater(self, rater: Any) -> Marks:
        """The marks of a reward or judge, and those of the pairs that a reward model learned
        from.
        """
        found = set(self._marks(rater))
        for spec in specs(rater, RewardSpec):
            if spec.kind == "stage":
                found |= self._pairs_of(self.recipe.stages[spec.name.partition("@")[0]])
            elif spec.kind == "folder":
                pairs = self._in_other_run(
                    Path(spec.name), lambda run, name: run._pairs_of(run.recipe.stages[name])
                )
                found |= pairs or frozenset()
        return frozenset(found)

    def _marks(self, value: Any) -> Marks:
        """The models and plugins that rate, without combinations, which only add up."""
        found = set()
        components = [
            component for component in specs(value, Component) if component.kind == "judge"
        ]
        for spec in specs(value, RewardSpec):
            if spec.kind == "stage":
                found.add(f"model {self.run / spec.name.partition('@')[0]}")
            elif spec.kind == "folder":
                found.add(f"model {stage_folder(Path(spec.name))}")
            elif spec.kind == "reward" and spec.component is not None:
                components.append(spec.component)
        for component in components:
            others = [
                part
                for part in specs(component.options, Component)
                if part.kind in ("reward", "judge")
            ]
            # Else it only passes on what these say
            if not others and not specs(component.options, RewardSpec):
                grader = getattr(component.options, "grader", component.name)
                found.add(f"{component.kind} {grader} {_which(component)}")
        return frozenset(found)

    def _pairs_of(self, stage: Stage) -> Marks:
        """The files and hub data sets of a stage's preference data, each hundredth that it reads of
        them.

        The seed decides which conversations are in a share, so those of another seed may be any.
        """
        if stage.settings is None or stage.settings.data is None:
            return frozenset()
        found = set()
        for source in stage.settings.data.sources:
            low, high = (
                source.part
                if isinstance(source.part, tuple) and self.recipe.seed == self.seed
                else (0, 1)
            )
            name = source.path or source.hub or f"stage {source.stage}"
            found |= {
                f"pairs {name} {percent}" for percent in range(round(low * 100), round(high * 100))
            }
        return frozenset(found)

    def _in_other_run(
        self, folder: Path, read: Callable[[_Lineage, str], Marks | None]
    ) -> Marks | None:
        """What `read` finds for the stage of another run that made a model; None if that is not
        known.
        """
        stage = stage_folder(folder)
        other = _recipe_at(stage.parent)
        if other is None or stage.name not in other.stages:
            return None
        return read(_Lineage(other, stage.parent, self.seed), stage.name)


def _which(component: Component) -> str:
    """The model, the file or the words behind a reward or judge. Other options make it no other
    one.
    """
    options = dict(component.options)
    if "server" in options:
        options |= dict(options["server"])
    return " ".join(f"{key}={options[key]}" for key in WHICH if options.get(key))


def _teaching(stage: Stage) -> list[Any]:
    """The settings and options of a stage, without the monitors that only watch."""
    settings = dict(stage.settings) if stage.settings is not None else {}
    monitors = settings.pop("monitors", None) or ()
    settings["monitors"] = [each for each in monitors if getattr(each.options, "stop", True)]
    return [settings, stage.component.options]


def _recipe_at(run: Path) -> Recipe | None:
    """The recipe of a run; None if it is gone or cannot be read."""
    try:
        return load_recipe(run / RECIPE) if is_file(run / RECIPE) else None
    except AlignkitError:
        return None


def trained_on(
    model: str | RewardSpec,
    prompts: Sequence[Group],
    recipe: Recipe,
    chosen: Callable[[str], str | None],
    read: Callable[[DataSpec], Iterable[Group]],
) -> dict[str, set[int]]:
    """For each training stage of a model, the places of the prompts in its data; stages without any
    are left out.

    model: a policy, or a reward with any number of reward models. A model's stages are its own and
    those that its starting weights come from, also in another run: `other/sft`, as far as its files
    are still there. chosen: the policy that a step selected. read: the groups of a data entry that
    are not held out. Prompts are equal if their words are.
    """
    places: dict[str, list[int]] = {}
    for place, group in enumerate(prompts):
        places.setdefault(_words(group), []).append(place)
    found: dict[str, set[int]] = {}
    rewards = [spec.name for spec in specs(model, RewardSpec) if spec.kind in ("stage", "folder")]
    names = [model] if isinstance(model, str) else rewards
    for label, stage in chain(*(_trained_stages(name, recipe, chosen) for name in names)):
        trained = _read_by(stage, read, own=label == stage.name)
        # A dialogue is learned from its first answer on, and asked about at its last.
        words = {_words(group) for group in (*trained, *prompts_of(trained)) if group.prompt}
        seen = set(chain(*(places[key] for key in words & places.keys())))
        if seen:
            found[label] = seen
    return found


def trained_prompts(
    context: StepContext, model: Any, prompts: Sequence[Group]
) -> dict[str, set[int]]:
    """`trained_on` for the recipe of a step."""
    if context.recipe is None:
        return {}
    chosen = lambda name: read_record(context.out.parent / name).get("policy")  # noqa: E731
    return trained_on(model, prompts, context.recipe, chosen, context.read)


def training_data_note(
    context: StepContext, models: Iterable[Any], groups: Sequence[Group], what: str
) -> str:
    """A warning of groups that models learned from; empty without any. what: the name of groups,
    such as `prompts`.
    """
    return note_on([trained_prompts(context, model, groups) for model in models], groups, what)


def note_on(trained: Iterable[Mapping[str, set[int]]], groups: Sequence[Group], what: str) -> str:
    """See `training_data_note`. trained: of each model, what `trained_prompts` says."""
    seen: dict[str, set[int]] = {}
    for one in trained:
        seen |= one
    if not seen:
        return ""
    stages = ", ".join(f"{len(places)} by {stage}" for stage, places in seen.items())
    count = len(set().union(*seen.values()))
    return f"warning: {count} of {len(groups)} {what} are training data ({stages})"


def log_odds(reward: RewardSpec, run: Path) -> bool | None:
    """What the stage that trained a reward model says of its scores (`Algorithm.log_odds`); None if
    that is unknown.

    run: the folder of the run, for its own stages. A reward model of another run lies in the folder
    of its stage.
    """
    if reward.kind not in ("stage", "folder"):
        return None
    folder = Results(run).artifact(reward.name) if reward.kind == "stage" else Path(reward.name)
    said = read_record(stage_folder(folder)).get("log_odds")
    return said if isinstance(said, bool) else None


def _trained_stages(
    name: str, recipe: Recipe, chosen: Callable[[str], str | None]
) -> Iterator[tuple[str, Stage]]:
    """The training stages that a model went through, latest first, with their names.

    It is of this run, or of another one, whose name then stands before theirs.
    """
    folder, run = stage_folder(Path(name)), ""
    other = None if name.partition("@")[0] in recipe.stages else _recipe_at(folder.parent)
    if other is not None:
        recipe, run, name = other, f"{folder.parent.name}/", folder.name
    reference: str | None = name
    while reference is not None:
        stage = recipe.stages.get(reference.partition("@")[0])
        if stage is None:
            return
        if stage.settings is not None:
            yield f"{run}{stage.name}", stage
            reference = stage.settings.from_
        elif run:
            reference = read_record(folder.parent / stage.name).get("policy")
        else:
            reference = chosen(stage.name)


def _read_by(
    stage: Stage, read: Callable[[DataSpec], Iterable[Group]], *, own: bool
) -> list[Group]:
    """What a stage trained on. own: of this run; of another one, what its stages made or what is
    gone is left out.
    """
    groups: list[Group] = []
    settings = stage.settings
    assert settings is not None
    for spec in specs([settings.data, settings.prompts, settings.mix], DataSpec):
        try:
            groups += read(spec) if own or not any(source.stage for source in spec.sources) else ()
        except DataError:
            if own:
                raise
    return groups


def _words(group: Group) -> str:
    """The same for prompts with the same roles and words."""
    return sha256_of([[turn["role"], turn.get("content", "").strip()] for turn in group.prompt])
