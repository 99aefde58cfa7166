"""The table of an iteration: its groups of responses, and what is known of each response.

Rewards write columns of scores, a combination makes the reward of them, filters and the algorithm
decide which responses are kept, and those in tokens get measurements and advantages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from statistics import fmean, pstdev, stdev
from typing import Any

import torch
from torch import Tensor

from alignkit import functional as F
from alignkit.contract.reward import REWARD_KEY, Rating, Verdict, costs
from alignkit.data.group import (
    Group,
    length,
    responses_of,
    with_responses,
)
from alignkit.models.packing import Examples

MOST_KINDS = 7  # kinds that metrics keep apart


@dataclass(eq=False)
class Rollouts:
    """The sampled groups of an iteration with columns over their R responses, in their order. A
    score that is missing is NaN.

    before: what combinations remembered before it. sampled: the groups as they were sampled. parts:
    name of a single reward -> float64 [R]. verdicts: of judges. reward: float64 [R], what the
    combination made of the parts, less the penalty for a missing end; None without one.
    learned: float64 [R], the reward that advantages come from, whitened where the algorithm says
    so. metrics: of the combination. scored: the groups with the scores of their responses, as files
    keep them. keep: bool [R], whether a response is learned from. kept: the groups of these
    responses. examples: the kept groups in tokens, with what was measured and their advantages.
    """

    before: dict[str, dict[str, Any]] = field(default_factory=dict)
    sampled: list[Group] = field(default_factory=list)
    parts: dict[str, Tensor] = field(default_factory=dict)
    verdicts: list[Verdict | Rating] = field(default_factory=list)
    reward: Tensor | None = None
    learned: Tensor | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    scored: list[Group] = field(default_factory=list)
    keep: Tensor = field(default_factory=lambda: torch.ones(0, dtype=torch.bool))
    kept: list[Group] = field(default_factory=list)
    examples: Examples = field(default_factory=lambda: Examples([]))

    def add_reward(self, reward: Tensor, *, learns: bool, whiten: bool, penalty: float) -> None:
        """Take in the combined reward [R], and keep the responses that have one if they are learned
        from.

        whiten: to mean 0 and variance 1 over all of them, before the penalty, which it would
        rescale. penalty: for each response without an end, in units of the (whitened) reward.
        """
        present, learned = ~reward.isnan(), reward.clone()
        if whiten and present.any():
            learned[present] = F.whiten(reward[present])
        if penalty:
            ends = [not response.truncated for response in responses_of(self.sampled)]
            ended = torch.tensor(ends, dtype=torch.bool)
            reward = F.missing_eos_penalty(reward, ended, penalty)
            learned = F.missing_eos_penalty(learned, ended, penalty)
            if present.any():
                missing = (~ended[present]).double().mean()
                self.metrics["missing_eos_penalty"] = penalty * float(missing)
        self.reward, self.learned = reward, learned if learns else None
        self.scored = with_columns(self.sampled, {**self.parts, REWARD_KEY: reward})
        self.keep = present if learns else torch.ones_like(present)
        self.kept = taken(self.scored, self.keep.tolist())

    def keep_all(self) -> None:
        """Learn from all responses, which have no reward."""
        self.scored = self.kept = self.sampled
        self.keep = torch.ones(len(responses_of(self.sampled)), dtype=torch.bool)

    def keep_groups(self, chosen: Sequence[bool]) -> None:
        """Leave out some of the groups that are kept so far. chosen: whether each of them stays."""
        # The responses of these groups are those that are true in `keep`, in order.
        sizes = torch.tensor([len(group.responses) for group in self.kept], dtype=torch.int64)
        stays = torch.tensor(chosen, dtype=torch.bool).repeat_interleave(sizes)
        self.keep = self.keep.masked_scatter(self.keep, stays)
        self.kept = [*compress(self.kept, chosen)]

    def summary(self) -> dict[str, Any]:
        """Mean and deviation of the reward, means of its parts, lengths, and shares, of what has
        one; as metrics.

        The reward includes the penalty for a missing end, and its parts do not.
        """
        metrics: dict[str, Any] = {}
        if self.reward is not None:
            present = ~self.reward.isnan()
            if present.any():
                reward = self.reward[present]
                deviation = float(reward.std(correction=0))
                parts = self.parts if len(self.parts) > 1 else ()
                metrics |= by_prompt(self.scored, parts)
                metrics |= {"reward": float(reward.mean()), "reward_std": deviation}
            metrics["unscored"] = int((~present).sum())
            for name, column in self.parts.items():
                if missing := int(column.isnan().sum()):
                    metrics[f"unscored/{name}"] = missing
                scores = column[present & ~column.isnan()]
                if len(scores) and name != REWARD_KEY:
                    metrics[f"score/{name}"] = float(scores.mean())
        metrics |= self.metrics
        responses = responses_of(self.kept)
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


def by_prompt(groups: Sequence[Group], parts: Iterable[str]) -> dict[str, float]:
    """Metrics whose unit is a prompt: how far the rewards of one prompt's responses differ, which is
    what a policy learns from; the mean reward with its standard error; and if there are several
    kinds of prompts, those of each, with its prompts and the means of the reward's parts.

    A prompt's kind is its column `kind`, or else the name of the file that it is from.
    """
    values, kinds = dict[str, list[float]](), set[str]()
    for group in with_scores(groups):
        file = group.origin.file if group.origin is not None else ""
        kind = f"kind/{group.meta.get('kind') or Path(file).stem}/"
        kinds.add(kind)
        rewards = [response.reward for response in group.responses]
        if len(rewards) > 1:
            values.setdefault("reward_std_within", []).append(pstdev(rewards))
        for start in ("", kind):
            values.setdefault(f"{start}reward", []).append(fmean(rewards))
        for name in parts:
            scores = [response.scores[name] for response in group.responses]
            if known := [score for score in scores if score is not None]:
                values.setdefault(f"{kind}score/{name}", []).append(fmean(known))
    metrics = dict[str, float]()
    for name, own in sorted(values.items()):
        if 1 < len(kinds) <= MOST_KINDS or not name.startswith("kind/"):
            metrics[name] = fmean(own)
            start, _, fact = name.rpartition("/")
            if start and fact == "reward":
                metrics[f"{start}/prompts"] = len(own)
            if fact == "reward" and len(own) > 1:
                metrics[f"{name}_se"] = stdev(own) / math.sqrt(len(own))
    return metrics


def with_columns(groups: Sequence[Group], columns: Mapping[str, Tensor]) -> list[Group]:
    """The groups with more scores of their responses: by name, [responses] each; None where a
    column is NaN.
    """
    values = {name: column.tolist() for name, column in columns.items()}
    scored, place = [], 0
    for group in groups:
        responses = []
        for response in group.responses:
            new = {
                name: None if math.isnan(column[place]) else column[place]
                for name, column in values.items()
            }
            responses.append(replace(response, scores={**response.scores, **new}))
            place += 1
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
