"""A recipe's `reward:`: every single reward scores the responses, and combinations make one number
of the scores.

Both write into the table of an iteration (`Rollouts`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from alignkit.contract.kinds import Filter
from alignkit.contract.reward import CombinedReward, Context, Reward, spending
from alignkit.data.group import Group, copies, preview, responses_of
from alignkit.errors import PluginError, RunFailed
from alignkit.host import returns
from alignkit.host.calls import call, create, remembered
from alignkit.host.registry import Component
from alignkit.io.text import Say
from alignkit.recipe.schema import RewardSpec, specs
from alignkit.tokens.counts import counted
from alignkit.training.collectives import ONE_PROCESS, Collectives
from alignkit.training.rollouts import Rollouts, taken

Column = list[float | None]
# The groups, some at a time, that a single reward, by its name, scores at once.
Chunks = Callable[[str, Sequence[Group]], Iterable[Sequence[Group]]]


def filter_mask(chooser: Filter, groups: Sequence[Group]) -> list[bool]:
    """Whether a filter keeps each group."""
    if not groups:
        return []
    kept: list[bool] = returns.plain(
        call(chooser, "keep", groups, returns=partial(returns.mask, len(groups)))
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
        """What the combination makes of the scores of its parts, [responses] each."""
        wanted = partial(returns.combined, len(responses_of(groups)))
        combined: CombinedReward = call(
            self.plugin, "combine", copies(groups), columns, returns=wanted
        )
        return combined

    def applies(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Whether each response has a score, or the parts that the combination needs."""
        if not self.children:
            return ~parts[self.place].isnan()
        apply = torch.stack([child.applies(parts) for child in self.children.values()])
        return apply.any(dim=0) if self.plugin.leaves_out else apply.all(dim=0)

    def reward(
        self, groups: Sequence[Group], parts: Mapping[str, Tensor], wanted: Tensor
    ) -> CombinedReward:
        """The rewards of the wanted responses, float64, NaN elsewhere. parts: of single rewards."""
        if not self.children:
            return CombinedReward(parts[self.place])
        wanted = wanted & self.applies(parts)
        columns: dict[str, Tensor] = {}
        for name, child in self.children.items():
            columns[name] = child.reward(groups, parts, wanted).reward[wanted]
        everywhere = torch.full(wanted.shape, math.nan, dtype=torch.float64)
        if not wanted.any():
            return CombinedReward(everywhere)
        combined = self.combine(taken(groups, wanted.tolist()), columns)
        reward = everywhere.masked_scatter(wanted, combined.reward.double())
        return CombinedReward(reward, combined.metrics)


@dataclass(eq=False)
class Rewards:
    """A reward expression, ready to score; without one, responses get no scores.

    collectives: each process scores its share, and combines the scores of all. by_engine: an
    engine, which the first process has, answers those that sample. make: returns the plugin of a
    component, which may have been made before; default: a new one. say: tells the user why `score`
    gave no scores.
    """

    spec: RewardSpec | None
    context: Context
    _: KW_ONLY
    collectives: Collectives = ONE_PROCESS
    chunks: Chunks = lambda name, groups: [groups]
    by_engine: bool = False
    make: Callable[[Component], Any] = create
    say: Say = lambda text: None

    def __post_init__(self) -> None:
        self.name, self.root = "", None
        self.leaves: dict[str, Node] = {}
        self.combinations: dict[str, Node] = {}
        if self.spec is not None:
            self.name = self.spec.name
            self.root = self._node(self.spec, self.name, self.name)

    def _node(self, spec: RewardSpec, name: str, place: str) -> Node:
        children = {
            child: self._node(below, child, f"{place}/{child}")
            for child, below in spec.children.items()
        }
        node = Node(spec, name, place, children)
        if spec.component is not None:
            node.plugin = self.make(spec.component)
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
        nodes = (*self.leaves.values(), *self.combinations.values())
        return any(node.plugin is not None and node.plugin.within_group for node in nodes)

    @property
    def comparable(self) -> bool:
        """Whether rewards of different iterations can be compared."""
        return not self.within_group and not self.state()

    def score(self, groups: Sequence[Group], penalty: float = 0.0) -> list[Group]:
        """The groups, with every part and the combination (`reward`) among their responses' scores.

        Combinations remember nothing of it. penalty: subtracted from the rewards of truncated
        responses.
        """
        rollouts = self.combine(self.ask(groups), learns=False, penalty=penalty)
        missing = 0 if rollouts.reward is None else int(rollouts.reward.isnan().sum())
        if missing and (why := rollouts.why_unscored()):
            fact = f"{counted(missing, 'response')} without a score{why}"
            self.say(f"warning: {self.name}: {fact}")
        return rollouts.scored

    # What single rewards say

    def ask(self, groups: Sequence[Group], rollouts: Rollouts | None = None) -> Rollouts:
        """Let every single reward score the responses, and add them to a table."""
        rollouts = rollouts or Rollouts(self.state())
        columns: dict[Node | str, Tensor] = {}  # a model in several places scores once
        with spending() as verdicts:
            for name, leaf in self.leaves.items():
                key = leaf.spec.name if leaf.plugin is None else leaf
                if key not in columns:
                    columns[key] = self._column(leaf, groups)
                column = rollouts.parts.get(name, columns[key][:0])
                rollouts.parts[name] = torch.cat([column, columns[key]])
        for every in self.collectives.gather(verdicts):
            rollouts.verdicts += every
        rollouts.sampled += groups
        return rollouts

    def _column(self, leaf: Node, groups: Sequence[Group]) -> Tensor:
        """The scores of a single reward, float64 [responses]. Each process computes its share."""
        main_only = self.by_engine and any(
            part.options.asks_engine() for part in specs(leaf.spec.component, Component)
        )
        column: Column = []
        for some in self.chunks(leaf.name, groups):
            sizes = [len(group.responses) for group in some]
            column += self.collectives.map_sharded(
                sizes, partial(self._share, leaf, some), main_only
            )
        return torch.tensor(
            [math.nan if value is None else value for value in column], dtype=torch.float64
        )

    def _share(self, leaf: Node, some: Sequence[Group], own: Sequence[int]) -> Column:
        groups = [some[index] for index in own]
        wanted = partial(returns.scores, len(responses_of(groups)))
        if leaf.plugin is not None:
            return list(returns.plain(call(leaf.plugin, "score", copies(groups), returns=wanted)))
        column = list(self.context.models[leaf.spec.name].scores(groups))
        try:
            wanted(column)
        except PluginError as error:
            raise RunFailed(f"reward '{leaf.name}': {error}") from error
        return column

    # What combinations make of it

    def combine(
        self, rollouts: Rollouts, *, learns: bool = True, whiten: bool = False, penalty: float = 0.0
    ) -> Rollouts:
        """Fill in the rewards of all responses, and keep those to learn from; returns the table.

        Combinations see all of them at once, with what they remembered before the iteration.
        learns: whether something is learned from the rewards; otherwise combinations remember
        nothing of it. whiten, penalty: see `Rollouts.add_reward`.
        """
        if self.root is None:
            rollouts.keep_all()
            return rollouts
        self.restore(rollouts.before)
        answered = torch.ones(len(responses_of(rollouts.sampled)), dtype=torch.bool)
        for name, leaf in self.leaves.items():
            if not getattr(leaf.plugin, "may_not_apply", False):
                answered &= ~rollouts.parts[name].isnan()
        combined = self.root.reward(rollouts.sampled, rollouts.parts, answered)
        rollouts.metrics = {f"reward/{name}": value for name, value in combined.metrics.items()}
        rollouts.add_reward(combined.reward, learns=learns, whiten=whiten, penalty=penalty)
        if not learns:
            self.restore(rollouts.before)
        return rollouts

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

    def nothing_scored(self, table: Rollouts) -> str:
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
