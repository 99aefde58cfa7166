"""The rules of what takes part in a run: steps, environments and monitors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from alignkit.contract.environment import Environment
from alignkit.contract.kinds import Monitor, MonitoredStage, MonitorReport
from alignkit.contract.reward import Context
from alignkit.contract.settings import Settings
from alignkit.contract.step import Artifact, Step, StepContext, StepData
from alignkit.data.group import (
    Group,
    group_from_json,
    group_to_json,
    prompts_of,
    user_turn,
)
from alignkit.host import returns
from alignkit.host.calls import call, create
from alignkit.host.registry import Component
from alignkit.io.console import Metrics
from alignkit.recipe.schema import BASE
from alignkit.runs.services import resumable_map
from alignkit.testing.surroundings import SEED, Surroundings, conform, why_not_stored
from alignkit.training.episodes import Factory
from alignkit.training.monitors import report_of
from alignkit.training.rewards import Rewards

ROWS: Sequence[Mapping[str, Any]] = (
    {"prompt": "What is 2 + 3?"},
    {"prompt": "Say something kind."},
)
TURNS = (
    '<tool_call>{"name": "no_such_tool", "arguments": {}}</tool_call>',
    "<tool_call>{</tool_call>",
    "The answer is 5.",
)
ITERATIONS = 4  # iterations that a monitor is shown

SEEDED = "a step draws random numbers from `context.seed` only"
RANDOM = "what is random must be drawn from self.random"
ALONE = (
    "episodes must not share anything: keep what an episode remembers on `self`, and set it in "
    "`reset`"
)


# Steps


def check_step(
    cls: type[Step],
    options: Mapping[str, Any] | None = None,
    *,
    groups: Sequence[Group] | None = None,
    folder: Path | None = None,
) -> None:
    """Raise ConformanceError listing every rule that a step breaks (see the table in
    `alignkit.testing`).

    Args:
        options: As in a recipe; stages that they name are the model `tiny`, with weights of their
            own.
        groups: What data options hold; default: three responses to each of four prompts.
        folder: The recipe's; default: the current one.
    """
    conform("step", cls, options, _check_step, folder=folder, groups=groups)


def _check_step(around: Surroundings, component: Component) -> None:
    problems = around.problems
    with problems.unchanged("`check_data` changes the groups", around.data):
        for load in (lambda option: option and around.load(option), lambda option: None):
            call(create(component), "check_data", StepData(load, lambda reward, groups: None))
    with problems.unchanged("`run` changes the groups that `context.load` returned", around.data):
        first = _run(around, component, "first")
    for number, group in enumerate(first.groups or ()):
        if why := why_not_stored(group):
            problems.append(f"`run`: group {number} of the artifact {why}")
    named = {*around.resolver.stage.roles, BASE}
    if first.policy is not None and first.policy not in named:
        problems.append(
            f"`run`: the artifact's `policy` {first.policy!r} is not the value of a PolicyRef "
            "option"
        )
    if unnamed := sorted(around.models.used - named):
        texts = ", ".join(unnamed)
        problems.append(
            f"`run` uses models that no option names as PolicyRef, RewardRef or StageRef: {texts}"
        )
    if _stored(first) != _stored(_run(around, component, "first")):
        problems.append(
            "`run`: interrupted after all chunks of `context.map`, it makes another artifact"
        )
    if _stored(first) != _stored(_run(around, component, "second")):
        problems.append(f"`run`: a second run makes another artifact: {SEEDED}")


def _run(around: Surroundings, component: Component, name: str) -> Artifact:
    """Run the step as a run does. name: of the folder; the same name continues."""
    out = around.cache / "stages" / name
    out.mkdir(parents=True, exist_ok=True)
    context, metrics = around.context, Metrics(out / "metrics.jsonl")
    step_context = StepContext(
        **{field.name: getattr(context, field.name) for field in fields(Context)},
        out=out,
        scorer=lambda spec: Rewards(spec, context),
        map=lambda name, rows, f: resumable_map(
            out / "map" / f"{name}.jsonl", rows, partial(map, f)
        ),
        log=metrics.write,
        say=lambda text: None,
    )
    made: Artifact = call(create(component), "run", step_context, returns=returns.artifact)
    return made


def _stored(artifact: Artifact) -> list[Any]:
    """All that an artifact holds, as far as it can be compared."""
    report = artifact.report and artifact.report.plain()
    return [list(artifact.groups or ()), artifact.policy, artifact.summary, artifact.text, report]


# Environments


def check_environment(
    cls: type[Environment],
    options: Mapping[str, Any] | None = None,
    *,
    rows: Sequence[Mapping[str, Any]] = ROWS,
    turns: Sequence[str] = TURNS,
    folder: Path | None = None,
) -> None:
    """Raise ConformanceError listing every rule that an environment breaks (see the table in
    `alignkit.testing`).

    Args:
        options: As in a recipe.
        rows: The columns of prompts, with the user's words as `prompt`.
        turns: What the policy writes in every episode, with calls in `<tool_call>` tags, until the
            environment ends it.
        folder: The recipe's; default: the current one.
    """
    groups = []
    for row in rows:
        columns = {name: value for name, value in row.items() if name != "prompt"}
        groups.append(Group((user_turn(str(row.get("prompt", ""))),), meta=columns))
    check = partial(_check_environment, groups=groups, turns=turns)
    conform("environment", cls, options, check, folder=folder)


def _check_environment(
    around: Surroundings, component: Component, groups: Sequence[Group], turns: Sequence[str]
) -> None:
    factory = Factory(component, "", SEED, around.folder)
    early = create(component)
    call(early, "check", around.folder)
    call(early, "check_prompts", groups)

    def play(episodes: Sequence[Any]) -> list[Any]:
        """Play episodes turn by turn; returns all that each of them was."""
        going = episodes
        for text in turns:
            going = [episode for episode in going if episode.hear(text)]
        return [(list(episode.prompt), episode.turns, episode.scores()) for episode in episodes]

    def begin() -> list[Any]:
        return [factory.begin(group, "", (place,), 0) for place, group in enumerate(groups)]

    def play_each() -> list[Any]:
        results = []
        for episode in begin():
            results += play([episode])
        return results

    with around.problems.unchanged("`reset` changes the row", groups):
        expected = play_each()
    variants = {
        "playing it again": (play_each(), RANDOM),
        "playing all episodes at the same time": (play(begin()), ALONE),
    }
    around.problems.compare("{} changes the episode of row", expected, variants)


# Monitors


def check_monitor(
    cls: type[Monitor],
    options: Mapping[str, Any] | None = None,
    *,
    groups: Sequence[Group] | None = None,
    folder: Path | None = None,
) -> None:
    """Raise ConformanceError listing every rule that a monitor breaks (see the table in
    `alignkit.testing`).

    Args:
        options: As in a recipe.
        groups: The scored samples of each iteration; default: the kit's own.
        folder: The recipe's; default: the current one.
    """
    conform("monitor", cls, options, _check_monitor, folder=folder, groups=groups)


def _check_monitor(around: Surroundings, component: Component) -> None:
    samples = around.rollouts
    stored = [group_from_json(group_to_json(group)) for group in samples]

    def reports(samples: Sequence[Group], done: int = 0) -> list[MonitorReport]:
        """What a monitor says of samples in each iteration. done: those before the stage
        resumed.
        """
        monitor = create(component)
        stage = MonitoredStage(
            Settings(iterations=ITERATIONS),
            around.cache,
            done,
            scorer=lambda spec: Rewards(spec, around.context),
            prompts=lambda spec: prompts_of(around.load(spec)),
            answer=lambda prompts, count, iteration: list(samples),
            on_main_process=lambda function: function(),
        )
        call(monitor, "start", stage)
        found = [
            report_of(monitor, number, samples, {"kl": number / ITERATIONS})
            for number in range(1, ITERATIONS + 1)
        ]
        return [*found, call(monitor, "finish", "", returns=partial(returns.monitor_report, 0))]

    with around.problems.unchanged("`observe` changes the samples", samples):
        at_first = reports(samples)
    if repr(reports(stored, done=ITERATIONS)) != repr(at_first):
        around.problems.append(
            "a second monitor says something else about the same samples, as they are read when "
            "a stage resumes"
        )
    reports([], done=ITERATIONS)  # people delete files
