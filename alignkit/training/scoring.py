"""A recipe's `reward:` at work: score responses by every component, then combine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alignkit.data.group import Group, preview
from alignkit.errors import RunFailed
from alignkit.reward import REWARD_KEY, CombinedReward, Context, Reward, RewardCombination

if TYPE_CHECKING:
    from alignkit.recipe.schema import RewardSpec


class Scorer:
    """One node of a reward expression and the nodes below it."""

    def __init__(self, spec: RewardSpec, context: Context, name: str = ""):
        self.spec, self.context = spec, context
        self.name = name or spec.name
        self.children = {child: Scorer(below, context, child) for child, below in spec.children.items()}
        if REWARD_KEY in self.children:
            raise RunFailed(
                f"a part of a combination cannot be called '{REWARD_KEY}': the combination is; rename the stage"
            )
        self.plugin: Any = None
        if spec.component is not None:
            self.plugin = spec.component.registration.implementation(spec.component.options)
        if isinstance(self.plugin, Reward):
            self.plugin.prepare(context)

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with every component and the un-whitened combination (`reward`) in their responses' scores."""
        if not any(group.responses for group in groups):
            return list(groups)
        components = self._components(groups)
        plain = self._combined(groups, components).raw.tolist()
        columns = {**components, REWARD_KEY: [None if math.isnan(x) else x for x in plain]}
        scored, at = [], 0
        for group in groups:
            responses = []
            for response in group.responses:
                scores = {name: column[at] for name, column in columns.items()}
                responses.append(replace(response, scores={**response.scores, **scores}))
                at += 1
            scored.append(replace(group, responses=tuple(responses)))
        return scored

    def combine(self, groups: Sequence[Group]) -> CombinedReward:
        """The combination over these scored groups as one batch."""
        names = self._component_names()
        responses = [response for group in groups for response in group.responses]
        found = self._combined(groups, {name: [r.scores.get(name) for r in responses] for name in names})
        for place, (reward, plain) in enumerate(zip(found.reward.tolist(), found.raw.tolist(), strict=True)):
            if not math.isfinite(reward) or not math.isfinite(plain):
                raise RunFailed(
                    f"reward '{self.name}' makes {reward} (before whitening {plain}) of {responses[place].scores}"
                )
        return found

    def _component_names(self, prefix: str = "") -> list[str]:
        if not self.children:
            return [prefix + self.name]
        below = [child._component_names(f"{prefix}{name}/") for name, child in self.children.items() if child.children]
        leaves = [prefix + name for name, child in self.children.items() if not child.children]
        return leaves + [name for names in below for name in names]

    def _components(self, groups: Sequence[Group], prefix: str = "") -> dict[str, list[float | None]]:
        if not self.children:
            return {prefix + self.name: self._leaf(groups)}
        found: dict[str, list[float | None]] = {}
        for name, child in self.children.items():
            found |= child._components(groups, f"{prefix}{name}/" if child.children else prefix)
        return found

    def _leaf(self, groups: Sequence[Group]) -> list[float | None]:
        count = sum(len(group.responses) for group in groups)
        if self.spec.kind in ("stage", "folder"):
            column = list(self.context.models.scores(self.spec.name, groups))
        else:
            assert isinstance(self.plugin, Reward)
            scores = self.plugin.score(groups)
            if len(scores) != 1:
                raise RunFailed(f"reward '{self.name}' gave components {sorted(scores)}; expected one")
            column = list(next(iter(scores.values())))
        if len(column) != count:
            raise RunFailed(f"reward '{self.name}' gave {len(column)} scores for {count} responses")
        for place, value in enumerate(column):
            if value is not None and not math.isfinite(value):
                prompt = preview([group for group in groups for _ in group.responses][place])
                raise RunFailed(
                    f"reward '{self.name}' gave {value} for response {place}, to {prompt}; a failed score is None"
                )
        return column

    def _combined(
        self, groups: Sequence[Group], components: Mapping[str, Sequence[float | None]], prefix: str = ""
    ) -> CombinedReward:
        if not self.children:
            values = _tensor(components[prefix + self.name])
            return CombinedReward(values, values, {})
        assert isinstance(self.plugin, RewardCombination)
        parts: dict[str, Tensor] = {}
        for name, child in self.children.items():
            below = f"{prefix}{name}/" if child.children else prefix
            parts[name] = child._combined(groups, components, below).raw
        return self.plugin.combine(groups, parts)


def _tensor(column: Sequence[float | None]) -> Tensor:
    return torch.tensor([math.nan if x is None else x for x in column], dtype=torch.float64)
