"""The rules of combinations of rewards: shapes, what they remember, missing scores, and scales."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignkit.calls import call, create
from alignkit.data.group import Group
from alignkit.recipe.schema import RewardSpec
from alignkit.registry import Component
from alignkit.reward import REWARD_KEY, CombinedReward, RewardCombination
from alignkit.testing.checks import relative_distance, state_problems
from alignkit.testing.surroundings import Surroundings, conform, turned_groups
from alignkit.training.rewards import Node, Rewards

TOLERANCE = 1e-6  # relative, in float64

Columns = Mapping[str, Tensor]  # name of a part -> [responses]

AGAIN = "it must not draw random numbers, and what it remembers belongs in `state`"
ORDER = "use the index of each response's group, not positions in the batch"
MISSING = "a response without a score is dropped; leave it out of means and deviations, as with `nanmean`"
SUMS = "with a `total` a response's reward depends only on its own scores"
TOTAL = "it is the reward of the scores that it is given"


def check_combination(
    cls: type[RewardCombination],
    options: Mapping[str, Any] | None = None,
    *,
    groups: Sequence[Group] | None = None,
    folder: Path | None = None,
) -> None:
    """Raise ConformanceError listing every rule that a combination breaks (see the table in `alignkit.testing`).

    Its parts are not scored: they get normally distributed scores.

    Args:
        options: As in a recipe; a part that is no installed reward is a stage that trains a reward model.
        groups: As of `check_reward`.
        folder: As of `check_reward`.
    """
    conform("reward", cls, options, _problems, folder=folder, groups=groups)


def _problems(around: Surroundings, component: Component) -> Iterator[str]:
    combination = create(component)
    parts, again = call(combination, "parts"), call(combination, "parts")
    if not isinstance(parts, Mapping) or not parts or not all(isinstance(name, str) for name in parts):
        yield f"`parts` must return a dict from the names of the rewards to options, not {parts!r:.100}"
        return
    if REWARD_KEY in parts or list(parts) != list(again):
        yield f"`parts` must name the same rewards on every call, none of them '{REWARD_KEY}'"
        return
    yield from _Rules(around, component, list(parts)).problems()


class _Rules:
    """A combination and the scores of its parts."""

    def __init__(self, around: Surroundings, component: Component, parts: Sequence[str]):
        children = {name: RewardSpec("stage", name) for name in parts}
        self.spec = RewardSpec("combine", component.name, component, children)
        self.context, self.groups = around.context, around.rollouts
        self.count = sum(len(group.responses) for group in self.groups)
        generator = torch.Generator().manual_seed(11)
        self.columns = {name: torch.randn(self.count, generator=generator, dtype=torch.float64) for name in parts}

    def new(self, state: Mapping[str, Any] | None = None) -> Node:
        probe = Rewards(self.spec, self.context).root
        if state is not None:
            probe.plugin.state = copy.deepcopy(dict(state))
        return probe

    def problems(self) -> Iterator[str]:
        probe = self.new()
        yield from state_problems(probe.plugin, "at first")
        start = copy.deepcopy(probe.plugin.state)
        groups, columns = copy.deepcopy(self.groups), _copies(self.columns)
        expected = probe.combine(groups, columns)
        yield from state_problems(probe.plugin, "after `combine`")
        yield from self._inputs(groups, columns)
        if wrong := list(_values(expected)):
            yield from wrong
            return
        again = self.new(start)
        yield from _changes("a second call from the same state", expected, again.combine(self.groups, self.columns))
        if again.plugin.state != probe.plugin.state:
            yield f"`combine`: a second call from the same state leaves another `state`: {AGAIN}"
        yield from self._order(expected, start)
        yield from self._missing(start)
        same = self.new(start).combine(self.groups, {name: torch.ones_like(x) for name, x in self.columns.items()})
        if not (same.reward.isfinite().all() and same.raw.isfinite().all()):
            yield "`combine`: equal scores make a reward that is not finite: their deviation is 0"
        if probe.plugin.sums:
            yield from self._sums(expected, start)
        elif not probe.plugin.whitens:
            yield from _scale(expected)

    def _inputs(self, groups: list[Group], columns: Columns) -> Iterator[str]:
        if groups != self.groups:
            yield "`combine` changes the groups that it is given"
        for name, column in self.columns.items():
            if not torch.equal(column, columns[name]):
                yield f"`combine` changes components['{name}'], which other parts of the run read: use a copy"

    def _order(self, expected: CombinedReward, start: Mapping[str, Any]) -> list[str]:
        turned = turned_groups(self.groups)
        actual = self.new(start).combine(turned, {name: column.flip(0) for name, column in self.columns.items()})
        back = replace(actual, reward=actual.reward.flip(0), raw=actual.raw.flip(0))
        return _changes("the order of groups and responses", expected, back, ORDER)

    def _missing(self, start: Mapping[str, Any]) -> list[str]:
        columns = _copies(self.columns)
        for column in columns.values():
            column[0] = math.nan
        found = self.new(start).combine(self.groups, columns)
        wrong = [name for name, x in (("reward", found.reward), ("raw", found.raw)) if not x[1:].isfinite().all()]
        return [f"`combine`: a missing score makes '{name}' of other responses NaN: {MISSING}" for name in wrong]

    def _sums(self, expected: CombinedReward, start: Mapping[str, Any]) -> list[str]:
        rows = len(self.groups[0].responses)
        part = self.new(start).combine(self.groups[:1], {name: x[:rows] for name, x in self.columns.items()})
        probe = self.new(start)
        total = replace(expected, reward=probe.total(self.groups, self.columns))
        return [
            *_changes("leaving out the other groups", expected.take(list(range(rows))), part, SUMS),
            *(text.replace("`combine`: ", "") for text in _changes("`total`", expected, total, TOTAL)),
            *(["`total` changes `state`: only `combine` may"] if probe.plugin.state != start else []),
        ]


def _copies(columns: Columns) -> dict[str, Tensor]:
    return {name: column.clone() for name, column in columns.items()}


def _values(combined: CombinedReward) -> Iterator[str]:
    """The rewards of responses that have all scores, and the metrics."""
    for name, values in (("reward", combined.reward), ("raw", combined.raw)):
        if not values.is_floating_point():
            yield f"`combine`: '{name}' must be float, not {values.dtype}"
        elif not values.isfinite().all():
            yield f"`combine`: '{name}' is not finite although every response has all scores"
    metrics: Any = combined.metrics
    if not isinstance(metrics, Mapping):
        yield f"`combine`: 'metrics' must be a dict, not {type(metrics).__name__}"
        return
    for name, value in metrics.items():
        if not isinstance(value, int | float):
            yield f"`combine`: metric '{name}' must be a number, not {type(value).__name__}; use float(...)"


def _changes(cause: str, expected: CombinedReward, actual: CombinedReward, help: str = AGAIN) -> list[str]:
    pairs = {"reward": (actual.reward, expected.reward), "raw": (actual.raw, expected.raw)}
    changed = [name for name, (new, old) in pairs.items() if not relative_distance(new, old, floor=1.0) <= TOLERANCE]
    return [f"`combine`: {cause} changes '{name}': {help}" for name in changed]


def _scale(combined: CombinedReward) -> list[str]:
    """A reward that is a line in the raw reward, but not the raw reward itself, is on another scale."""
    reward, raw = combined.reward.double(), combined.raw.double()
    spread = raw - raw.mean()
    slope = float((spread * reward).sum() / spread.square().sum().clamp(min=1e-12))
    line = reward.mean() + slope * spread
    if relative_distance(reward, line, floor=1.0) > TOLERANCE or relative_distance(reward, raw, floor=1.0) <= TOLERANCE:
        return []
    return [
        f"`combine`: 'reward' is 'raw' on another scale (times {slope:.3g}): the property `whitens` must return True, "
        "or a combination of raw scores would use it"
    ]
