"""The rules of what takes part in a run: steps, environments, monitors and trackers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from alignkit import seeds, shapes
from alignkit.calls import call, create
from alignkit.data.group import Group, Message, group_from_json, group_to_json
from alignkit.environment import Environment, player
from alignkit.io.console import Metrics
from alignkit.models.shared_model import BASE
from alignkit.monitor import Monitor, Observation
from alignkit.options import Ref
from alignkit.recipe.schema import RewardSpec, specs
from alignkit.registry import Component
from alignkit.reward import REWARD_KEY, Context, Reward, RewardCombination
from alignkit.runs.map import resumable_map
from alignkit.runs.stage import check_scoring
from alignkit.sampling import SamplingOptions
from alignkit.settings import Settings
from alignkit.step import Artifact, Step, StepContext, StepData, run_step
from alignkit.testing.rules import changes, unchanged
from alignkit.testing.surroundings import SEED, Surroundings, conform, why_not_stored
from alignkit.tracker import TrackedRun, Tracker, tracked
from alignkit.training.monitors import look, next_prompts, with_gold
from alignkit.training.rewards import Rewards

ROWS: Sequence[Mapping[str, Any]] = ({"prompt": "What is 2 + 3?"}, {"prompt": "Say something kind."})
TURNS = (
    '<tool_call>{"name": "no_such_tool", "arguments": {}}</tool_call>',
    "<tool_call>{</tool_call>",
    "The answer is 5.",
)
LINES: tuple[tuple[str, int, dict[str, float]], ...] = (
    ("first", 1, {"loss": 2.5, "grad_norm": 0.1}),
    ("first", 2, {"loss": float("nan"), "validation/loss": 1.0}),
    ("second", 1, {"reward": -3.0, "kl": float("inf"), "filtered/spread": 0.0}),  # a later stage counts from 1 again
    ("second", 2, {}),
)
LOOKS = 4  # of a monitor

SEEDED = "a step draws random numbers from `context.seed` only"
RANDOM = "what is random must be drawn from self.random"
ALONE = "episodes must not share anything: keep what an episode remembers on `self`, and set it in `reset`"


# Steps


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
    conform("step", cls, options, _step_problems, folder=folder, groups=groups)


def _step_problems(around: Surroundings, component: Component) -> Iterator[str]:
    def check_prompts(reward: Any, groups: Sequence[Group]) -> None:
        for part in specs(reward, Component):
            plugin = create(part)
            if isinstance(plugin, Environment | Reward | RewardCombination):
                check_scoring(part, plugin, groups)

    with unchanged("`check_data` changes the groups that it is given", around.data) as problems:
        for load in (lambda option: None if option is None else around.load(option), lambda option: None):
            call(create(component), "check_data", StepData(load, check_prompts))
    yield from problems
    named = _references(component.options)
    asked = {name for each in specs(component.options, Component) for name in _references(each.options)}
    with unchanged("`run` changes the groups that `context.load` returned", around.data) as problems:
        first = _run(around, component, "first")
    yield from problems
    for number, group in enumerate(first.groups or ()):
        if why := why_not_stored(group):
            yield f"`run`: group {number} of the artifact {why}"
    if first.policy is not None and first.policy not in {*named, BASE}:
        yield f"`run`: the artifact's `policy` {first.policy!r} is not the value of a PolicyRef option"
    if unnamed := sorted(around.models.asked - named - asked - {BASE}):
        yield f"`run` uses models that no option names as PolicyRef, RewardRef or StageRef: {', '.join(unnamed)}"
    if isinstance(component.options, SamplingOptions):
        told = set(component.options.policies_to_sample())
        if missing := sorted(around.models.sampled - told - asked):
            yield f"`Options.policies_to_sample` does not name {', '.join(missing)}, which `run` samples from"
    if _stored(first) != _stored(_run(around, component, "first")):
        yield "`run`: a run that was interrupted after all chunks of `context.map` makes another artifact"
    if _stored(first) != _stored(_run(around, component, "second")):
        yield f"`run`: a second run makes another artifact: {SEEDED}"


def _run(around: Surroundings, component: Component, name: str) -> Artifact:
    """As a run does. name: of the folder; the same one continues."""
    out = around.cache / "stages" / name
    out.mkdir(parents=True, exist_ok=True)
    context, metrics = around.context, Metrics(out / "metrics.jsonl")
    step_context = StepContext(
        **{field.name: getattr(context, field.name) for field in fields(Context)},
        out=out,
        scorer=lambda spec: Rewards(spec, context),
        map=lambda name, rows, f: resumable_map(out / "map" / f"{name}.sqlite", rows, f),
        log=lambda **values: metrics.write(stage="", **values),
        say=lambda text: None,
    )
    return run_step(create(component), step_context)


def _stored(artifact: Artifact) -> list[Any]:
    """All that an artifact holds, as far as it can be stored."""
    report = artifact.report.plain() if artifact.report is not None else None
    summary = json.dumps(dict(artifact.summary or {}), sort_keys=True, default=repr)
    return [list(artifact.groups or ()), artifact.policy, summary, artifact.text, report]


def _references(options: BaseModel) -> set[str]:
    """The stages that the options name, those within other options included."""
    found = {spec.name for spec in specs(options, RewardSpec)}
    for name, info in type(options).model_fields.items():
        value = getattr(options, name)
        for within in value if isinstance(value, list) else [value]:
            if isinstance(within, BaseModel):
                found |= _references(within)
        if {"policy", "stage", "from"} & set(_kinds([*info.metadata, info.annotation])):
            found |= set(_texts(value))
    return found


def _kinds(annotations: Iterable[Any]) -> Iterator[str]:
    """The kinds of references that annotations mark."""
    for annotation in annotations:
        if isinstance(annotation, Ref):
            yield annotation.kind
        else:
            yield from _kinds([*get_args(annotation), *getattr(annotation, "__metadata__", ())])


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | Sequence):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


# Environments


def check_environment(
    cls: type[Environment],
    options: Mapping[str, Any] | None = None,
    *,
    rows: Sequence[Mapping[str, Any]] = ROWS,
    turns: Sequence[str] = TURNS,
    folder: Path | None = None,
) -> None:
    """Raise ConformanceError listing every rule that an environment breaks (see the table in `alignkit.testing`).

    Args:
        options: As in a recipe.
        rows: The columns of prompts, with the user's words as `prompt`.
        turns: What the policy writes in every episode, with calls in `<tool_call>` tags, until the environment ends it.
        folder: The recipe's; default: the current one.
    """
    groups = []
    for row in rows:
        columns = {name: value for name, value in row.items() if name != "prompt"}
        groups.append(Group((Message(role="user", content=str(row.get("prompt", ""))),), meta=columns))
    problems = partial(_environment_problems, groups=groups, turns=turns)
    conform("environment", cls, options, problems, folder=folder)


def _environment_problems(
    around: Surroundings, component: Component, groups: Sequence[Group], turns: Sequence[str]
) -> Iterator[str]:
    factory = player().Factory(component, "", SEED, around.folder)
    early = create(component)
    call(early, "check", around.folder)
    call(early, "check_prompts", groups)

    def begun() -> list[Any]:
        return [factory.begin(group, "", (place,), 0) for place, group in enumerate(groups)]

    def played() -> list[Any]:
        """All that each episode was, one after the other."""
        episodes = begun()
        for episode in episodes:
            for text in turns:
                if not episode.hear(text, factory.tools):
                    break
        return [(list(episode.prompt), episode.turns, episode.scores()) for episode in episodes]

    def played_together() -> list[Any]:
        """The same turn by turn, as a run does."""
        episodes = begun()
        going = episodes
        for text in turns:
            going = [episode for episode in going if episode.hear(text, factory.tools)]
        return [(list(episode.prompt), episode.turns, episode.scores()) for episode in episodes]

    with unchanged("`reset` changes the row that it is given", groups) as problems:
        expected = played()
    yield from problems
    variants = {
        "playing it again": (played(), RANDOM),
        "playing all episodes at the same time": (played_together(), ALONE),
    }
    yield from changes("{} changes the episode of row", expected, variants)
    for place, group in enumerate(groups):  # raises if `reset` does not return the same for both
        factory.begin(group, "", (place,), 1, factory.begin(group, "", (place,), 0))


# Monitors


def check_monitor(
    cls: type[Monitor],
    options: Mapping[str, Any] | None = None,
    *,
    groups: Sequence[Group] | None = None,
    folder: Path | None = None,
) -> None:
    """Raise ConformanceError listing every rule that a monitor breaks (see the table in `alignkit.testing`).

    Args:
        options: As in a recipe.
        groups: The scored samples of each iteration, which are also those of gold; default: the kit's own.
        folder: The recipe's; default: the current one.
    """
    conform("monitor", cls, options, _monitor_problems, folder=folder, groups=groups)


def _monitor_problems(around: Surroundings, component: Component) -> Iterator[str]:
    samples = [with_gold(group, group) for group in around.rollouts]
    stored = [group_from_json(group_to_json(group)) for group in samples]

    def observed(samples: Sequence[Group], gold: Sequence[Group]) -> list[Observation]:
        """What a monitor says of samples in each iteration; every other one has gold."""
        monitor = create(component)
        call(monitor, "start", Settings(iterations=LOOKS, gold=REWARD_KEY))
        looks = [look(monitor, number, samples, gold if number % 2 else None) for number in range(1, LOOKS + 1)]
        return [*looks, call(monitor, "finish", "", returns=shapes.observation())]

    def chosen(resumed: bool) -> list[int] | None:
        """The prompts after two looks. resumed: a stage that resumes has chosen none of the ones before."""
        monitor = create(component)
        call(monitor, "start", Settings(iterations=LOOKS))
        prompts = [replace(group, responses=()) for group in stored]
        for number in (1, 2):
            if not resumed:
                next_prompts(monitor, number, prompts, seeds.stream(0, number))
            look(monitor, number, stored, None)
        return next_prompts(monitor, 3, prompts, seeds.stream(0, 3))

    with unchanged("`look` changes the samples that it is given", samples) as problems:
        observations = observed(samples, samples)
    yield from problems
    if repr(observed(stored, stored)) != repr(observations):
        yield "a second monitor says something else about the same samples, as they are read when a stage resumes"
    observed([], stored)  # people delete files
    if chosen(resumed=True) != chosen(resumed=False):
        yield "`next_prompts` depends on more than the samples and `random`: a stage that resumes would ask others"
    for observation in observations:
        if not all(isinstance(value, int | float) for value in observation.metrics.values()):
            yield f"`metrics` must be numbers, not {dict(observation.metrics)!r:.80}"
        try:
            json.dumps(dict(observation.summary))
        except (TypeError, ValueError) as error:
            yield f"`summary` must be JSON, because stage.json keeps it: {error}"


# Trackers


def check_tracker(cls: type[Tracker], options: Mapping[str, Any] | None = None, *, folder: Path | None = None) -> None:
    """Raise ConformanceError listing every rule that a tracker breaks (see the table in `alignkit.testing`).

    Args:
        options: As in a recipe. The tracker really logs two short stages of a run that is interrupted once.
        folder: The recipe's; default: the current one.
    """
    conform("tracker", cls, options, _tracker_problems, folder=folder)


def _tracker_problems(around: Surroundings, component: Component) -> Iterator[str]:
    run = TrackedRun("checked", around.cache / "run", {"name": "checked", "stages": {"first": {}, "second": {}}})
    run.folder.mkdir()
    for lines in (LINES[:2], LINES[2:]):
        tracker = create(component)
        call(tracker, "check")
        call(tracker, "start", run)
        for stage, step, metrics in lines:
            copied = dict(metrics)
            call(tracker, "log", stage, step, copied)
            if repr(copied) != repr(metrics):
                yield "`log` changes the metrics that it is given"
        call(tracker, "finish")


def replay(folder: Path, tracker: Tracker, recipe: Mapping[str, Any] | None = None) -> int:
    """Give a tracker all that a run's `metrics.jsonl` holds, from its start to its finish; returns how many lines.

    Args:
        folder: The run.
        tracker: Takes the numbers.
        recipe: The resolved recipe.
    """
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines()  # a process that was killed leaves a part of a line
    tracker.start(TrackedRun(folder.resolve().name, folder, recipe or {}))
    numbers: dict[str, int] = {}
    for line in map(json.loads, filter(str.strip, lines)):
        stage = str(line.get("stage", ""))
        numbers[stage] = numbers.get(stage, 0) + 1
        tracker.log(*tracked(line, numbers[stage]))
    tracker.finish()
    return sum(numbers.values())
