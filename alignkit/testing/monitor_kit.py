"""The rules of monitors: the same observations of the same samples, also when they are read from a run's files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit import seeds
from alignkit.data.group import Group, group_from_json, group_to_json
from alignkit.monitor import Monitor, Observation
from alignkit.registry import Component
from alignkit.reward import REWARD_KEY
from alignkit.settings import Settings
from alignkit.testing.surroundings import Surroundings, conform
from alignkit.training.monitors import CheckedMonitor, with_gold

LOOKS = 4
Look = tuple[Sequence[Group], Sequence[Group] | None]  # samples, and those with gold


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
    conform("monitor", cls, options, _problems, folder=folder, groups=groups)


def _problems(around: Surroundings, component: Component) -> Iterator[str]:
    samples = [with_gold(group, group) for group in around.rollouts]
    stored = [group_from_json(group_to_json(group)) for group in samples]
    observations = _observations(component, [(samples, samples), (samples, None)] * (LOOKS // 2))
    if samples != stored:
        yield "`look` changes the samples that it is given"
    if repr(_observations(component, [(stored, stored), (stored, None)] * (LOOKS // 2))) != repr(observations):
        yield "a second monitor says something else about the same samples, as they are read when a stage resumes"
    _observations(component, [([], stored), (stored, None)])  # people delete files
    if len({repr(_chosen(component, [stored] * 2, resumed=resumed)) for resumed in (True, False)}) > 1:
        yield "`next_prompts` depends on more than the samples and `random`: a stage that resumes would ask others"
    for observation in observations:
        if not all(isinstance(value, int | float) for value in observation.metrics.values()):
            yield f"`metrics` must be numbers, not {dict(observation.metrics)!r:.80}"
        try:
            json.dumps(dict(observation.summary))
        except (TypeError, ValueError) as error:
            yield f"`summary` must be JSON, because stage.json keeps it: {error}"


def _observations(component: Component, looks: Sequence[Look]) -> list[Observation]:
    monitor = CheckedMonitor(component, Settings(iterations=LOOKS, gold=REWARD_KEY))
    return [*(monitor.look(number, *look) for number, look in enumerate(looks, 1)), monitor.finish("")]


def _chosen(component: Component, looks: Sequence[Sequence[Group]], *, resumed: bool) -> list[int] | None:
    """The prompts after these looks. resumed: a stage that resumes has chosen none of the ones before."""
    monitor = CheckedMonitor(component, Settings(iterations=LOOKS))
    prompts = [replace(group, responses=()) for group in looks[0]]
    for number, groups in enumerate(looks, 1):
        if not resumed:
            monitor.next_prompts(number, prompts, seeds.stream(0, number))
        monitor.look(number, groups, None)
    return monitor.next_prompts(len(looks) + 1, prompts, seeds.stream(0, len(looks) + 1))
