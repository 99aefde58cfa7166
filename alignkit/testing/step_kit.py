"""The rules of steps: they use what their options name, and make the same artifact again."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from alignkit.calls import call, create
from alignkit.data.group import Group
from alignkit.environment import Environment
from alignkit.io.console import Metrics
from alignkit.models.shared_model import BASE
from alignkit.options import Ref
from alignkit.recipe.schema import RewardSpec, specs
from alignkit.registry import Component
from alignkit.reward import Context, Reward, RewardCombination
from alignkit.runs.prepare import check_scoring
from alignkit.runs.steps import resumable_map
from alignkit.sampling_options import SamplingOptions
from alignkit.step import Artifact, Step, StepContext, StepData, run_step
from alignkit.testing.surroundings import Surroundings, conform, why_not_stored
from alignkit.training.rewards import Rewards

AGAIN = "a step draws random numbers from `context.seed` only"


def check_step(
    cls: type[Step],
    options: Mapping[str, Any] | None = None,
    *,
    groups: Sequence[Group] | None = None,
    folder: Path | None = None,
) -> None:
    """Raise ConformanceError listing every rule that a step breaks (see the table in `alignkit.testing`).

    Args:
        options: As in a recipe; stages that they name are the model `tiny`, with weights of their own.
        groups: What data options hold; default: three responses to each of four prompts.
        folder: The recipe's; default: the current one.
    """
    conform("step", cls, options, _problems, folder=folder, groups=groups)


def _problems(around: Surroundings, component: Component) -> Iterator[str]:
    before = copy.deepcopy(around.data)
    declared = _references(component.options)
    _check_data(around, component, lambda option: None if option is None else around.load(option))
    _check_data(around, component, lambda option: None)
    if around.data != before:
        yield "`check_data` changes the groups that it is given: make new ones with dataclasses.replace"
        around.data = copy.deepcopy(before)
    first = _run(around, component, "first")
    for number, group in enumerate(first.groups or ()):
        if why := why_not_stored(group):
            yield f"`run`: group {number} of the artifact {why}"
    if first.policy is not None and first.policy not in {*declared, BASE}:
        yield f"`run`: the artifact's `policy` {first.policy!r} is not the value of a PolicyRef option"
    if around.data != before:
        yield "`run` changes the groups that `context.load` returned: make new ones with dataclasses.replace"
    if unnamed := sorted(around.models.asked - declared - _judges_and_rewards(component) - {BASE}):
        yield f"`run` uses models that no option names as PolicyRef, RewardRef or StageRef: {', '.join(unnamed)}"
    yield from _sampled_problems(around, component)
    if not _same(first, _run(around, component, "first")):
        yield "`run`: a run that was interrupted after all chunks of `context.map` makes another artifact"
    if not _same(first, _run(around, component, "second")):
        yield f"`run`: a second run makes another artifact: {AGAIN}"


def _check_data(around: Surroundings, component: Component, load: Callable[[Any], list[Group] | None]) -> None:
    """As before the first stage of a run. load: returns None where the data are not here yet."""

    def check_prompts(reward: Any, groups: Sequence[Group]) -> None:
        for part in specs(reward, Component):
            plugin = create(part)
            if isinstance(plugin, Environment | Reward | RewardCombination):
                check_scoring(part, plugin, groups)

    step = create(component)
    call(step, "check_data", StepData(load, check_prompts))


def _run(around: Surroundings, component: Component, name: str) -> Artifact:
    """As a run does. name: of the folder; the same one continues."""
    return run_step(create(component), _context(around, around.cache / "stages" / name))


def _context(around: Surroundings, out: Path) -> StepContext:
    out.mkdir(parents=True, exist_ok=True)
    context, metrics = around.context, Metrics(out / "metrics.jsonl")

    def durable(name: str, rows: Sequence[Any], f: Callable[[Sequence[Any]], Iterable[Any]]) -> list[Any]:
        return resumable_map(out / "map" / f"{name}.sqlite", rows, f)

    return StepContext(
        **{field.name: getattr(context, field.name) for field in fields(Context)},
        out=out,
        scorer=lambda spec: Rewards(spec, context),
        map=durable,
        log=lambda **values: metrics.write(stage="", **values),
        say=lambda text: None,
    )


def _references(options: BaseModel) -> set[str]:
    """The stages that the options name, those within other options included."""
    found = {spec.name for spec in specs(options, RewardSpec)}
    for name, info in type(options).model_fields.items():
        value = getattr(options, name)
        for within in value if isinstance(value, list) else [value]:
            if isinstance(within, BaseModel):
                found |= _references(within)
        marks = [mark.kind for mark in _marks([*info.metadata, info.annotation])]
        if {"policy", "stage", "from"} & set(marks):
            found |= set(_texts(getattr(options, name)))
    return found


def _marks(annotations: Iterable[Any]) -> Iterator[Ref]:
    for annotation in annotations:
        if isinstance(annotation, Ref):
            yield annotation
        else:
            yield from _marks([*get_args(annotation), *getattr(annotation, "__metadata__", ())])


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)


def _judges_and_rewards(component: Component) -> set[str]:
    """The stages that the options of judges and rewards name, which ask for them themselves."""
    return {name for each in specs(component.options, Component) for name in _references(each.options)}


def _sampled_problems(around: Surroundings, component: Component) -> Iterator[str]:
    """The policies that respond must be known before the run, which fills in how they are sampled."""
    options = component.options
    if not isinstance(options, SamplingOptions):
        return
    missing = sorted(around.models.sampled - set(options.policies_to_sample()) - _judges_and_rewards(component))
    if missing:
        yield f"`Options.policies_to_sample` does not name {', '.join(missing)}, which `run` samples from"


def _same(first: Artifact, second: Artifact) -> bool:
    """Whether two artifacts hold the same, as far as both can be stored."""
    if list(first.groups or ()) != list(second.groups or ()) or first.policy != second.policy:
        return False
    texts = [json.dumps(dict(each.summary or {}), sort_keys=True, default=repr) for each in (first, second)]
    reports = [each.report.plain() if each.report is not None else None for each in (first, second)]
    return texts[0] == texts[1] and first.text == second.text and reports[0] == reports[1]
