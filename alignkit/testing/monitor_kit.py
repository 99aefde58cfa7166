"""The rules of monitors: the same observations of the same samples, also when they are read from a run's files."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.data.group import Group, group_from_json, group_to_json
from alignkit.monitor import GOLD_KEY, Monitor, Observation
from alignkit.registry import Component
from alignkit.reward import REWARD_KEY
from alignkit.settings import Settings
from alignkit.testing.surroundings import Surroundings, conform
from alignkit.training.watch import CheckedMonitor

LOOKS = 4
Look = tuple[list[Group], list[Group] | None]  # samples, and those with gold


def check_monitor(
    cls: type[Monitor],
    options: Mapping[str, Any] | None = None,
    *,
    groups: Sequence[Group] | None = None,
    folder: Path | None = None,
) -> None:
    """Raise ConformanceError listing every rule that a monitor breaks (see the table in `alignkit.testing`).

    options: as in a recipe. groups: samples of every iteration; default: the kit's own. Their rewards rise.
    """

    def problems(around: Surroundings, component: Component) -> Iterator[str]:
        return _problems(component, around.rollouts)

    conform("register_monitors", cls, dict(options or {}), problems, folder=folder, groups=groups)


def _problems(component: Component, groups: Sequence[Group]) -> Iterator[str]:
    samples = [[_scored(group, number) for group in groups] for number in range(1, LOOKS + 1)]
    looks: list[Look] = [(each, each if number % 2 else None) for number, each in enumerate(samples, 1)]
    before = copy.deepcopy(looks)
    observations = _observations(component, looks)
    if looks != before:
        yield "`look` changes the samples that it is given"
    stored = [(_stored(each), _stored(each) if gold else None) for each, gold in before]
    if repr(_observations(component, stored)) != repr(observations):
        yield "a second monitor says something else about the same samples, as they are read when a stage resumes"
    _observations(component, [([], before[0][1]), *before[1:]])  # people delete files
    for observation in observations:
        if not all(isinstance(value, int | float) for value in observation.metrics.values()):
            yield f"`metrics` must be numbers, not {dict(observation.metrics)!r:.80}"
        try:
            json.dumps(dict(observation.summary))
        except (TypeError, ValueError) as error:
            yield f"`summary` must be JSON, because stage.json keeps it: {error}"


def _observations(component: Component, looks: Sequence[Look]) -> list[Observation]:
    monitor = CheckedMonitor(component, Settings(iterations=LOOKS, gold=GOLD_KEY, gold_every=2))
    return [*(monitor.look(number, *look) for number, look in enumerate(looks, 1)), monitor.finish("")]


def _scored(group: Group, number: int) -> Group:
    """The rewards rise with the iteration; gold rises less."""
    responses = []
    for response in group.responses:
        reward = (response.scores.get(REWARD_KEY) or 0.0) + number
        responses.append(replace(response, scores={**response.scores, REWARD_KEY: reward, GOLD_KEY: reward / 2}))
    return replace(group, responses=tuple(responses))


def _stored(groups: Sequence[Group]) -> list[Group]:
    return [group_from_json(group_to_json(group)) for group in groups]
