"""A recipe's `reward:`: every single reward scores the responses, and combinations make one number
of the scores.

All of it is in one table per iteration, with a row for each response.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from alignkit import functional as F
from alignkit import shapes
from alignkit.calls import blame, call, create, remembered
from alignkit.data.group import (
    Group,
    copies,
    length,
    preview,
    responses_of,
    with_responses,
)
from alignkit.errors import PluginError, RunFailed
from alignkit.io.text import Say
from alignkit.judges import costs, spending
from alignkit.kinds import Filter
from alignkit.recipe.schema import RewardSpec, specs
from alignkit.registry import Component
from alignkit.reward import (
    LEARNED_KEY,
    REWARD_KEY,
    CombinedReward,
    Context,
    Rating,
    Reward,
    Verdict,
)
from alignkit.tokens.encoder import counted
from alignkit.training.collectives import ONE_PROCESS, Collectives

Column = list[float | None]
# The groups, some at a time, that a single reward, by its name, scores at once.
Chunks = Callable[[str, Sequence[Group]], Iterable[Sequence[Group]]]


@dataclass(eq=False)
class RewardTable:
    """What a reward says of responses, one row each, in the order of their groups. A score that is
    missing is NaN.

    parts: name of a single reward -> float64 [rows]. verdicts: of judges. raw: float64 [rows],
    before whitening; None without a reward. metrics: of the combination. scored: the groups with
    their scores. groups: what is left of them to learn from; their scores include the reward that
    is learned from.
    """

    sampled: list[Group] = field(default_factory=list)
    parts: dict[str, Tensor] = field(default_factory=dict)
    verdicts: list[Verdict | Rating] = field(default_factory=list)
    raw: Tensor | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    scored: list[Group] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Mean and deviation of the raw reward, means of its parts, lengths, and shares, of what
        has one; as metrics.

        The raw reward includes the penalty for a missing end, and its parts do not.
        """
        metrics: dict[str, Any] = {}
        if self.raw is not None:
            scored = ~self.raw.isnan()
            if scored.any():
                raw = self.raw[scored]
                metrics |= {"reward": float(raw.mean()), "reward_std": float(raw.std(correction=0))}
            metrics["unscored"] = int((~scored).sum())
            for name, column in self.parts.items():
                if missing := int(column.isnan().sum()):
                    metrics[f"unscored/{name}"] = missing
                scores = column[scored & ~column.isnan()]
                if len(scores) and name != REWARD_KEY:
                    metrics[f"score/{name}"] = float(scores.mean())
        metrics |= self.metrics
        responses = responses_of(self.groups)
        metrics["response_tokens"] = sum(map(length, responses)) / len(responses)
        metrics["truncated"] = sum(response.truncated for response in responses) / len(responses)
        usage = costs(self.verdicts)  # stored replies count, too
        for name, key in (("calls", "questions"), ("tokens", "tokens")):
            if usage[name] is not None:
                metrics[f"judge/{key}"] = usage[name]
        return metrics

    def why_unscored(self) -> str:
        """The reasons of judges, the first of each kind, to end a sentence with; empty without
        one.
        """
        first = dict[str, str]()
        for reason in filter(None, [verdict.reason for verdict in self.verdicts]):
            first.setdefault(reason.partition(":")[0], reason)
        return f"; reason: {'; '.join(first.values())}" if first else ""


def with_columns(groups: Sequence[Group], columns: Mapping[str, Tensor]) -> list[Group]:
    """The groups with more scores of their responses: by name, [responses] each; None where a
    column is NaN.
    """
    values = {name: column.tolist() for name, column in columns.items()}
    scored, row = [], 0
    for group in groups:
        responses = []
        for response in group.responses:
            new = {
                name: None if math.isnan(column[row]) else column[row]
                for name, column in values.items()
            }
            responses.append(replace(response, scores={**response.scores, **new}))
            row += 1
        scored.append(with_responses(group, responses))
    return scored


def taken(groups: Sequence[Group], keep: Sequence[bool]) -> list[Group]:
    """The groups with only some of their responses; groups left without one are absent. keep: for
    each response.
    """
    some, flags = [], iter(keep)
    for group in groups:
        responses = tuple([response for response in group.responses if next(flags)])
        if responses:
            some.append(with_responses(group, responses))
    return some


def with_scores(groups: Sequence[Group]) -> list[Group]:
    """The groups without the responses that could not be scored."""
    return taken(
        groups, [response.scores.get(REWARD_KEY) is not None for response in responses_of(groups)]
    )


def filter_mask(chooser: Filter, groups: Sequence[Group]) -> list[bool]:
    """Whether a filter keeps each group."""
    if not groups:
        return []
    kept: list[bool] = shapes.plain(
        call(chooser, "keep", groups, returns=partial(shapes.mask, len(groups)))
    )
    return kept


@dataclass(eq=False)
class Node:
    """A reward in an expression: a single one, or a combination of those below it.

    name: for errors. place: in the expression, `weighted_sum/style`; of a single reward, the name
    of its scores, which is its place below the root. plugin: None of a reward model.
    """

    spec: RewardSpec
    name: str
    place: str
    children: dict[str, Node]
    plugin: Any = None

    def combine(self, groups: Sequence[Group], columns: Mapping[str, Tensor]) -> CombinedReward:
        """What the combination makes of its parts' raw scores, [responses] each."""
        wanted = partial(shapes.combined, len(responses_of(groups)))
        combined: CombinedReward = call(
            self.plugin, "combine", copies(groups), columns, returns=wanted
        )
        return combined

    def applies(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The rows, bool, that have a score, or the parts that the combination needs."""
        if not self.children:
            return ~parts[self.place].isnan()
        rows = torch.stack([child.applies(parts) for child in self.children.values()])
        return rows.any(dim=0) if self.plugin.leaves_out else rows.all(dim=0)

    def reward(
        self, groups: Sequence[Group], parts: Mapping[str, Tensor], rows: Tensor
    ) -> CombinedReward:
        """The rewards of these rows, float64, NaN elsewhere. parts: of single rewards."""
        if not self.children:
            return CombinedReward(parts[self.place], parts[self.place], {})
        rows = rows & self.applies(parts)
        children = {
            name: child.reward(groups, parts, rows) for name, child in self.children.items()
        }
        missing = torch.full(rows.shape, math.nan, dtype=torch.float64)
        if not rows.any():
            return CombinedReward(missing, missing, {})
        some = taken(groups, rows.tolist())
        # Whitened and raw parts are combined separately. The order matters: `combine` may change
        # the state.
        total = None
        if any(child.spec.whitens for child in self.children.values()):
            parts_of = {name: child.reward[rows] for name, child in children.items()}
            total = call(self.plugin, "total", copies(some), parts_of)
        combined = self.combine(some, {name: child.raw[rows] for name, child in children.items()})
        if total is not None:
            combined = replace(combined, reward=total)
            with blame(self.plugin, "total"):
                shapes.combined(int(rows.sum()), combined)
        reward = missing.masked_scatter(rows, combined.reward.double())
        raw = missing.masked_scatter(rows, combined.raw.double())
        return CombinedReward(reward, raw, combined.metrics)


class Rewards:
    """A reward expression, ready to score; without one, responses get no scores.

    collectives: each process scores its share, and combines the scores of all. by_engine: an
    engine, which the first process has, answers those that sample.
    """

    def __init__(
        self,
        spec: RewardSpec | None,
        context: Context,
        *,
        collectives: Collectives = ONE_PROCESS,
        chunks: Chunks = lambda name, groups: [groups],
        by_engine: bool = False,
        make: Callable[[Component], Any] = create,
        say: Say = lambda text: None,
    ):
        """make: returns the plugin of a component, which may have been made before; default: a new
        one. say: tells the user why `score` gave no scores.
        """
        self.context, self.collectives, self.chunks, self.by_engine = (
            context,
            collectives,
            chunks,
            by_engine,
        )
        self._make, self._say = make, say
        self.name, self.root = "", None
        self.leaves: dict[str, Node] = {}
        self.combinations: dict[str, Node] = {}
        if spec is not None:
            self.name = spec.name
            self.root = self._node(spec, spec.name, spec.name)

    def _node(self, spec: RewardSpec, name: str, place: str) -> Node:
        children = {
            child: self._node(below, child, f"{place}/{child}")
            for child, below in spec.children.items()
        }
        node = Node(spec, name, place, children)
        if spec.component is not None:
            node.plugin = self._make(spec.component)
        if children:
            self.combinations[place] = node
            return node
        node.place = place.removeprefix(f"{self.name}/")
        self.leaves[node.place] = node
        if node.plugin is not None:
            call(node.plugin, "prepare", self.context)
        return node

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest score."""
        return getattr(self.root and self.root.plugin, "bounds", Reward.bounds)

    @property
    def within_group(self) -> bool:
        """Whether a score only ranks a response among its group's."""
        return any(
            leaf.plugin is not None and leaf.plugin.within_group for leaf in self.leaves.values()
        )

    @property
    def comparable(self) -> bool:
        """Whether raw scores of different iterations can be compared. What whitening remembers is
        not in them.
        """
        plugins = [node.plugin for node in self.combinations.values()]
        return not self.within_group and all(
            plugin.whitens or not plugin.state for plugin in plugins
        )

    def score(self, groups: Sequence[Group], penalty: float = 0.0) -> list[Group]:
        """The groups, with every part and the raw combination (`reward`) among their responses'
        scores.

        Combinations remember nothing of it.
        """
        before = self.state()
        table = self.combine(self.ask(groups), penalty)
        self.restore(before)
        missing = 0 if table.raw is None else int(table.raw.isnan().sum())
        if missing and (why := table.why_unscored()):
            told = f"{counted(missing, 'response')} without a score{why}"
            self._say(f"warning: {self.name}: {told}")
        return table.scored

    # What single rewards say

    def ask(self, groups: Sequence[Group], table: RewardTable | None = None) -> RewardTable:
        """Let every single reward score the responses, and add their rows to a table."""
        table = table or RewardTable()
        columns: dict[Node | str, Tensor] = {}  # a model in several places scores once
        with spending() as verdicts:
            for name, leaf in self.leaves.items():
                key = leaf.spec.name if leaf.plugin is None else leaf
                if key not in columns:
                    columns[key] = self._column(leaf, groups)
                table.parts[name] = torch.cat(
                    [table.parts.get(name, columns[key][:0]), columns[key]]
                )
        for every in self.collectives.gather(verdicts):
            table.verdicts += every
        table.sampled += groups
        return table

    def _column(self, leaf: Node, groups: Sequence[Group]) -> Tensor:
        """The scores of a single reward, float64 [responses]. Each process computes its share."""
        led = self.by_engine and any(
            part.options.asks_engine() for part in specs(leaf.spec.component, Component)
        )
        column: Column = []
        for some in self.chunks(leaf.name, groups):
            sizes = [len(group.responses) for group in some]
            column += self.collectives.map_sharded(sizes, partial(self._share, leaf, some), led)
        return torch.tensor(
            [math.nan if value is None else value for value in column], dtype=torch.float64
        )

    def _share(self, leaf: Node, some: Sequence[Group], own: Sequence[int]) -> Column:
        groups = [some[index] for index in own]
        wanted = partial(shapes.scores, len(responses_of(groups)))
        if leaf.plugin is not None:
            return list(shapes.plain(call(leaf.plugin, "score", copies(groups), returns=wanted)))
        column = list(self.context.models[leaf.spec.name].scores(groups))
        try:
            wanted(column)
        except PluginError as error:
            raise RunFailed(f"reward '{leaf.name}': {error}") from error
        return column

    # What combinations make of it

    def combine(
        self, table: RewardTable, penalty: float = 0.0, *, learns: bool = True
    ) -> RewardTable:
        """Fill in the rewards of all rows, and begin to learn from those that have one.

        penalty: subtracted from the rewards of truncated responses. learns: whether something is
        learned from them.
        """
        table.scored = table.groups = table.sampled
        if self.root is None:
            return table
        answered = torch.ones(len(responses_of(table.sampled)), dtype=torch.bool)
        for name, leaf in self.leaves.items():
            if not getattr(leaf.plugin, "may_not_apply", False):
                answered &= ~table.parts[name].isnan()
        combined = self.root.reward(table.sampled, table.parts, answered)
        reward, raw = combined.reward, combined.raw
        table.metrics = {f"reward/{name}": value for name, value in combined.metrics.items()}
        if penalty and learns:
            ended = torch.tensor(
                [not response.truncated for response in responses_of(table.sampled)],
                dtype=torch.bool,
            )
            # After combining: whitening would rescale the penalty, and the scores of other
            # responses with it.
            reward, raw = (
                F.missing_eos_penalty(scores, ended, penalty) for scores in (reward, raw)
            )
            scored = ~raw.isnan()
            if scored.any():
                table.metrics["missing_eos_penalty"] = penalty * float(
                    (~ended[scored]).double().mean()
                )
        table.raw = raw
        table.scored = table.groups = with_columns(table.sampled, {**table.parts, REWARD_KEY: raw})
        if learns:
            table.groups = with_scores(with_columns(table.scored, {LEARNED_KEY: reward}))
        return table

    def state(self) -> dict[str, dict[str, Any]]:
        """What combinations remember, by their place in the expression. Raises PluginError if it is
        not JSON.
        """
        states = {
            place: remembered(node.plugin, "combine") for place, node in self.combinations.items()
        }
        return {place: state for place, state in states.items() if state}

    def restore(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Let combinations remember what a table or a checkpoint says, and nothing else."""
        for place, node in self.combinations.items():
            node.plugin.state = copy.deepcopy(states.get(place, {}))

    def nothing_scored(self, table: RewardTable) -> str:
        """Why no response has a score: whose is missing, first for which row, and what a judge
        says.
        """
        for name, leaf in self.leaves.items():
            for group in table.scored:
                if any(response.scores[name] is None for response in group.responses):
                    row = f"{preview(group)} ({group.origin})"
                    return (
                        f"reward '{leaf.name}' has no score, first in the row "
                        f"{row}{table.why_unscored()}"
                    )
        return f"reward '{self.name}' makes no number of the scores of its parts"
