"""Applies a recipe's `reward:`: scores responses with every component, then combines the scores."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from sys import float_info
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignkit import functional as F
from alignkit.data.group import Group, preview
from alignkit.errors import AlignkitError, RunFailed
from alignkit.judges import spending, without_score
from alignkit.plugin_errors import calling, made
from alignkit.recipe.schema import RewardSpec, specs
from alignkit.registry import Component
from alignkit.reward import LEARNED_KEY, REWARD_KEY, CombinedReward, Context, Rating, Reward, RewardCombination, Verdict
from alignkit.training.collectives import ONE_PROCESS, Reducer


def _is_score(value: Any) -> bool:
    """Whether a reward may return it for a response. None: it could not be scored."""
    return value is None or (isinstance(value, int | float) and abs(value) <= float_info.max)


class ModelScores:
    """What reward models said of the groups that were scored last. A model in several expressions scores them once."""

    def __init__(self) -> None:
        self._groups: Sequence[Group] = ()
        self._columns: dict[str, list[float | None]] = {}

    def of(self, model: str, groups: Sequence[Group], score: Callable[[], list[float | None]]) -> list[float | None]:
        """The scores of these very groups, by `score` if they are not known. model: a stage or a folder."""
        # By identity, which is cheap: all nodes of an expression score the same list of groups.
        if len(groups) != len(self._groups) or any(a is not b for a, b in zip(groups, self._groups, strict=True)):
            self._groups, self._columns = tuple(groups), {}
        if model not in self._columns:
            self._columns[model] = score()
        return self._columns[model]


@dataclass(frozen=True)
class Scores:
    """What a reward says of responses, one row each, in the order of their groups. A score that is missing is NaN.

    parts: name of a single reward -> float64 [responses]. reward, raw: float64 [responses], and metrics, as in
    `CombinedReward`. optional: the parts whose missing scores say that they do not apply.
    """

    parts: Mapping[str, Tensor]
    reward: Tensor
    raw: Tensor
    metrics: Mapping[str, float]
    optional: frozenset[str] = frozenset()

    @property
    def usable(self) -> Tensor:
        """Whether each response could be scored, bool [responses]."""
        return ~self.raw.isnan()

    def missing(self) -> dict[str, int]:
        """Responses without a score of each part that lacks some, as metrics."""
        counts = {name: int(column.isnan().sum()) for name, column in self.parts.items()}
        what = {name: "not_applicable" if name in self.optional else "unscored" for name in counts}
        return {f"{what[name]}/{name}": count for name, count in counts.items() if count}

    def rows(self) -> list[dict[str, float | None]]:
        """The scores of each response, by name, as it keeps them: None for a missing one."""
        columns = {name: column.tolist() for name, column in {**self.parts, REWARD_KEY: self.raw}.items()}
        return [
            {name: None if math.isnan(value) else value for name, value in zip(columns, row, strict=True)}
            for row in zip(*columns.values(), strict=True)
        ]

    def penalized(self, groups: Sequence[Group], penalty: float) -> Scores:
        """The scores, with the penalty subtracted from the rewards of truncated responses."""
        if not penalty:
            return self
        ended = torch.tensor([not r.truncated for group in groups for r in group.responses], dtype=torch.bool)
        reward, raw = (F.missing_eos_penalty(scores, ended, penalty) for scores in (self.reward, self.raw))
        return replace(self, reward=reward, raw=raw)

    def written(self, groups: Sequence[Group]) -> list[Group]:
        """The groups, with these scores among their responses'."""
        rows = iter(self.rows())
        return [
            replace(g, responses=tuple(replace(r, scores={**r.scores, **next(rows)}) for r in g.responses))
            for g in groups
        ]


Rows = Callable[["Scorer", Sequence[Group]], list[float | None]]


class Scorer:
    """One node of a reward expression with the nodes below it.

    reducer: each process scores its share of the groups, and combines the scores of all. known: shared by scorers of
    the same groups. rows(leaf, groups): the scores of a single reward, which asks for the `column` of some groups at a
    time; None: of all at once. by_engine: whether an engine, which the first process has, answers those that sample.
    """

    def __init__(
        self,
        spec: RewardSpec,
        context: Context,
        name: str = "",
        reducer: Reducer = ONE_PROCESS,
        known: ModelScores | None = None,
        rows: Rows | None = None,
        by_engine: bool = False,
    ):
        self.spec, self.context, self.reducer = spec, context, reducer
        self._led = by_engine and any(part.options.asks_engine() for part in specs(spec.component, Component))
        self.name = name or spec.name
        self._known, self._rows = known or ModelScores(), rows
        self.children = {
            child: Scorer(below, context, child, reducer, self._known, rows, by_engine)
            for child, below in spec.children.items()
        }
        self.plugin: Any = None
        self.reasons: dict[str, str] = {}  # judge -> its first reason for giving no score
        self.spent: list[Verdict | Rating] = []  # what judges said in this process's last scoring
        self._changes = False  # what the combination remembers changes what it makes of scores
        if spec.component is not None:
            self.plugin, self.author = made(spec.component, context.stage)
        if isinstance(self.plugin, RewardCombination) and not hasattr(self.plugin, "state"):
            self.plugin.state = {}  # its constructor did not call the base's
        if isinstance(self.plugin, Reward):
            with calling(self.author, "prepare", self.plugin):
                self.plugin.prepare(context)

    def nodes(self, above: str = "") -> Iterator[tuple[str, Scorer]]:
        """This node and all below it, each with its place in the expression: `weighted_sum/style/length`."""
        yield above + self.name, self
        for child in self.children.values():
            yield from child.nodes(f"{above}{self.name}/")

    def leaves(self) -> Iterator[tuple[str, Scorer]]:
        """The single rewards, each with the name of its scores: its place below the root."""
        for place, node in self.nodes():
            if not node.children:
                yield place if node is self else place.removeprefix(f"{self.name}/"), node

    def _combinations(self) -> Iterator[tuple[str, Scorer]]:
        return ((place, node) for place, node in self.nodes() if isinstance(node.plugin, RewardCombination))

    @property
    def whitens(self) -> bool:
        """Whether the combined reward is on another scale than the raw one."""
        return any(node.plugin.whitens for _, node in self._combinations())

    @property
    def within_group(self) -> bool:
        """Whether a score only ranks a response among its group's."""
        return any(isinstance(node.plugin, Reward) and node.plugin.within_group for _, node in self.nodes())

    @property
    def incomparable(self) -> str:
        """Why raw scores of different iterations cannot be compared; empty if they can."""
        if self.within_group:
            return f"reward '{self.name}' compares the responses of one group"
        # Without whitening, what it remembers can only be in `raw`.
        changing = [node.name for _, node in self._combinations() if node.plugin.state and not node.plugin.whitens]
        return f"reward '{changing[0]}' changes with what it remembers" if changing else ""

    @property
    def untrained(self) -> list[str]:
        """Of the combinations that have scored: those that training would have changed, in sentences."""
        text = "reward '{}' is as in the first iteration of training: see 'combinations' in its stage.json"
        return [text.format(node.name) for _, node in self._combinations() if node._changes and not node.plugin.state]

    def score(self, groups: Sequence[Group], penalty: float = 0.0) -> list[Group]:
        """The groups, with every component and the raw combination (`reward`) among their responses' scores.

        penalty: subtracted from the rewards of truncated responses.
        """
        # Scoring may be repeated, so combinations must not remember it.
        return self.scores(groups).penalized(groups, penalty).written(groups)

    def parts(self, groups: Sequence[Group]) -> dict[str, Tensor]:
        """What every component says of the responses, by the name of its scores: float64 [responses], NaN for None."""
        empty = not any(group.responses for group in groups)
        columns = {name: [] if empty else leaf._leaf(groups) for name, leaf in self.leaves()}
        return {name: torch.from_numpy(np.array(column, dtype=float)) for name, column in columns.items()}

    def scores(self, groups: Sequence[Group], *, learning: bool = False) -> Scores:
        """Ask every component, and combine what they say of the responses. See `combined`."""
        return self.combined(groups, self.parts(groups), learning=learning)

    def combined(self, groups: Sequence[Group], parts: Mapping[str, Tensor], *, learning: bool) -> Scores:
        """Combine what `parts` said of the responses that no component failed to score.

        learning: whether combinations remember this call. Raises PluginError if a reward to learn from is not finite.
        """
        count, leaves = sum(len(group.responses) for group in groups), dict(self.leaves())
        optional = frozenset(name for name, leaf in leaves.items() if getattr(leaf.plugin, "may_not_apply", False))
        failed = [column.isnan() for name, column in parts.items() if name not in optional]
        good = ~torch.stack([*failed, torch.zeros(count, dtype=torch.bool)]).any(dim=0)
        combined = self._of_rows(good, groups, {leaf: parts[name] for name, leaf in leaves.items()}, learning)
        reward, raw = combined.reward, combined.raw
        scores = Scores(parts, reward, raw, combined.metrics, optional)
        broken = scores.usable & ~(reward.isfinite() & raw.isfinite())
        if learning and broken.any():
            row = int(broken.nonzero()[0])
            numbers = f"{reward[row]} ({raw[row]} before whitening) for scores {scores.rows()[row]}"
            raise self._wrong("combine", f"the reward is {numbers}")
        return scores

    def states(self) -> dict[str, dict[str, Any]]:
        """What combinations remember, by their place in the expression. Raises PluginError if it is not JSON."""
        states = {place: node for place, node in self._combinations() if node.plugin.state}
        for node in states.values():
            try:
                json.dumps(node.plugin.state)
            except (TypeError, ValueError) as error:
                raise node._wrong("combine", f"`state` must be JSON; use float(...) ({error})") from error
        return {place: node.plugin.state for place, node in states.items()}

    def restore(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Let combinations remember what a checkpoint kept."""
        for place, node in self._combinations():
            if state := states.get(place):
                node.plugin.state = copy.deepcopy(state)

    def _leaf(self, groups: Sequence[Group]) -> list[float | None]:
        """The scores of a single component, one per response."""
        ask = partial(self.column if self._rows is None else partial(self._rows, self), groups)
        return self._known.of(self.spec.name, groups, ask) if self.spec.kind in ("stage", "folder") else ask()

    def column(self, groups: Sequence[Group]) -> list[float | None]:
        """The scores of a single component for groups that it sees at once, one per response, checked."""
        sizes = [len(group.responses) for group in groups]
        self.reasons, self.spent = {}, []  # a process that has no share of the groups asks nobody
        column = self.reducer.deal(sizes, lambda own: self._column([groups[index] for index in own]), led=self._led)
        for index, value in enumerate(column):
            if not _is_score(value):
                prompt = preview([group for group in groups for _ in group.responses][index])
                shown = "too large" if isinstance(value, int) else f"{value!r:.100}"
                raise self._wrong(
                    "score",
                    f"the score is {shown} for response {index} (prompt: {prompt}); return a finite number, or "
                    "None for a response that cannot be scored",
                )
        return column

    def _column(self, groups: Sequence[Group]) -> list[Any]:
        """As many scores as responses, which may be anything else."""
        if self.spec.kind in ("stage", "folder"):
            return self._listed({"": self.context.models[self.spec.name].scores(groups)}, groups)
        with without_score() as self.reasons, spending() as self.spent:
            with calling(self.author, "score", self.plugin, groups):
                scores = self.plugin.score(groups)
            return self._listed(scores, groups)

    def _listed(self, scores: Any, groups: Sequence[Group]) -> list[Any]:
        """One score per response, whatever it is."""
        if not isinstance(scores, Mapping) or len(scores) != 1:
            what = f"components {sorted(map(str, scores))}" if isinstance(scores, Mapping) else type(scores).__name__
            raise self._wrong("score", f'return one component, such as {{"": [0.5, 1.0]}}, not {what}')
        (column,) = scores.values()
        column = column.tolist() if isinstance(column, Tensor) else column
        if not isinstance(column, Sequence) or isinstance(column, str):
            raise self._wrong("score", f"return a list of scores, not {type(column).__name__}")
        if len(column) != (count := sum(len(group.responses) for group in groups)):
            raise self._wrong("score", f"return {count} scores, one per response, not {len(column)}")
        return list(column)

    def _wrong(self, method: str, text: str) -> AlignkitError:
        if self.plugin is None:  # a reward model
            return RunFailed(f"reward '{self.name}': {text}")
        return self.author.error(f"{type(self.plugin).__name__}.{method}", f"reward '{self.name}': {text}")

    def _combined(self, groups: Sequence[Group], scores: Mapping[Scorer, Tensor], learning: bool) -> CombinedReward:
        """scores: of the single rewards, [responses] each."""
        if not self.children:
            return CombinedReward(scores[self], scores[self], {})
        if not (applies := self._applies(scores)).all():
            return self._of_rows(applies, groups, scores, learning)
        parts = {name: child._combined(groups, scores, learning) for name, child in self.children.items()}
        raw = {name: part.raw for name, part in parts.items()}
        if not any(child.whitens for child in self.children.values()):
            return self._combination(groups, raw, learning=learning)
        # Whitened and raw parts are combined separately. The order matters: `combine` may change the state.
        learned = self._total(groups, {name: part.reward for name, part in parts.items()})
        return replace(self._combination(groups, raw, learning=learning), reward=learned)

    def _applies(self, scores: Mapping[Scorer, Tensor]) -> Tensor:
        """Whether this node has something to say of each response, bool [responses]."""
        if not self.children:
            return ~scores[self].isnan()
        parts = torch.stack([child._applies(scores) for child in self.children.values()])
        return parts.any(dim=0) if self.plugin.leaves_out else parts.all(dim=0)

    def _of_rows(
        self, rows: Tensor, groups: Sequence[Group], scores: Mapping[Scorer, Tensor], learning: bool
    ) -> CombinedReward:
        """`_combined` of some responses, bool [responses], and NaN for others, which statistics must not include."""
        reward, raw = (torch.full(rows.shape, math.nan, dtype=torch.float64) for _ in range(2))
        if not rows.any():
            return CombinedReward(reward, raw, {})
        given = {leaf: column[rows] for leaf, column in scores.items()}
        combined = self._combined(taken(groups, rows.tolist()), given, learning)
        reward[rows], raw[rows] = combined.reward.to(reward.dtype), combined.raw.to(raw.dtype)
        return CombinedReward(reward, raw, combined.metrics)

    def _total(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Tensor:
        with calling(self.author, "total", self.plugin, groups):
            total: Tensor = self.plugin.total(groups, components)
        self._check_shape("total", "it", total, groups)
        return total

    def _combination(
        self, groups: Sequence[Group], components: Mapping[str, Tensor], *, learning: bool
    ) -> CombinedReward:
        """What the plugin makes of its components."""
        before = None if learning else copy.deepcopy(self.plugin.state)
        with calling(self.author, "combine", self.plugin, groups):
            combined = self.plugin.combine(groups, components)
        if before is not None:
            self._changes = self._changes or (self.plugin.state != before and not self.plugin.whitens)
            self.plugin.state = before
        if not isinstance(combined, CombinedReward):
            raise self._wrong("combine", f"return a CombinedReward, not {type(combined).__name__}")
        for name in ("reward", "raw"):
            self._check_shape("combine", f"'{name}'", getattr(combined, name), groups)
        return combined

    def _check_shape(self, method: str, name: str, values: object, groups: Sequence[Group]) -> None:
        count = sum(len(group.responses) for group in groups)
        if not isinstance(values, Tensor) or tuple(values.shape) != (count,):
            shape = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise self._wrong(method, f"{name} must be [responses] = [{count}], not {shape}")


# --- rollouts


@dataclass(frozen=True)
class ScoredRollouts:
    """Rollouts with their scores.

    all_groups: every response, scored or not. groups: those to learn from: the responses that could be scored, in their
    groups; groups left without a response are absent. If nothing is learned from a reward, all.
    scores: of `all_groups`; None without a reward. combined: the reward of `groups`; None if nothing is learned from
    it. Rewards include the penalty for a missing end of turn, and components do not. penalty: its mean.
    """

    all_groups: list[Group]
    groups: list[Group]
    scores: Scores | None = None
    combined: CombinedReward | None = None
    penalty: float | None = None

    @property
    def unscored(self) -> int:
        """The number of responses that could not be scored; 0 if there is no reward."""
        return 0 if self.scores is None else int((~self.scores.usable).sum())

    @property
    def raw(self) -> Tensor | None:
        """The raw rewards of all responses that have one, float64; None if there are none."""
        known = None if self.scores is None else self.scores.raw[self.scores.usable]
        return known if known is not None and len(known) else None


def report_only(scores: Scores | None, groups: Sequence[Group]) -> ScoredRollouts:
    """Rollouts of an algorithm that learns from no reward, with the scores of the recipe's reward if it names one."""
    scored = list(groups) if scores is None else scores.written(groups)
    return ScoredRollouts(scored, scored, scores)


def score_rollouts(scorer: Scorer, groups: Sequence[Group], penalty: float = 0.0) -> ScoredRollouts:
    """Score and combine. penalty: subtracted from the rewards of truncated responses."""
    return with_reward(scorer.scores(groups, learning=True), groups, penalty)


def with_reward(scores: Scores, groups: Sequence[Group], penalty: float) -> ScoredRollouts:
    """Rollouts with their scores, to learn from. penalty: subtracted from the rewards of truncated responses."""
    # After combining: whitening would rescale the penalty, and the scores of other responses with it.
    scores = scores.penalized(groups, penalty)
    scored, usable = scores.written(groups), scores.usable
    kept = taken(scored, usable.tolist())
    cut = torch.tensor([response.truncated for group in kept for response in group.responses])
    mean = penalty * float(cut.double().mean()) if penalty and kept else None
    combined = CombinedReward(scores.reward, scores.raw, scores.metrics).take(usable)
    return ScoredRollouts(scored, kept, scores, combined, mean)


def taken(groups: Sequence[Group], keep: Sequence[bool]) -> list[Group]:
    """The groups with only some of their responses; groups left without one are absent. keep: for each response."""
    flags = iter(keep)
    kept = [replace(group, responses=tuple(r for r in group.responses if next(flags))) for group in groups]
    return [group for group in kept if group.responses]


def most_different(groups: Sequence[Group], combined: CombinedReward, count: int) -> tuple[list[Group], CombinedReward]:
    """`count` responses of each group, those with the highest and lowest rewards, and their rewards (PODS).

    Responses keep their order. Groups with fewer responses stay whole.
    """
    kept, rows, first = [], [], 0  # rows: indices into the responses of all groups
    for group in groups:
        last = first + len(group.responses)
        chosen = F.most_different(combined.reward[first:last], min(count, last - first)).tolist()
        kept.append(replace(group, responses=tuple(group.responses[index] for index in chosen)))
        rows += [first + index for index in chosen]
        first = last
    return kept, combined.take(rows)


def with_learned(groups: Sequence[Group], combined: CombinedReward | None) -> list[Group]:
    """The groups as filters and `keep_group` see them: their scores include the reward that is learned from."""
    if combined is None:
        return list(groups)
    rewards = iter(combined.reward.tolist())
    return [
        replace(g, responses=tuple(replace(r, scores={**r.scores, LEARNED_KEY: next(rewards)}) for r in g.responses))
        for g in groups
    ]


def with_scores(groups: Sequence[Group]) -> list[Group]:
    """The groups without the responses that could not be scored."""
    return taken(groups, [r.scores.get(REWARD_KEY) is not None for group in groups for r in group.responses])
