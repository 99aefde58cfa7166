"""Monitors of reward hacking: drift, which every stage in iterations has; gold; a budget of KL
(docs/reports.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from statistics import fmean as mean
from statistics import pstdev
from typing import Any

from alignkit import (
    DataError,
    DataRef,
    Field,
    Group,
    Monitor,
    Observation,
    Options,
    RewardRef,
    RunFailed,
)
from alignkit.data.group import read_groups, write_groups
from alignkit.kinds import MonitoredStage
from alignkit.reward import REWARD_KEY
from alignkit.settings import Settings

GOLD_KEY = "gold"  # of a response's scores
SAMPLES = 2  # answers to each held-out prompt, enough to compare answers to one prompt


class RewardHacking(Monitor):
    """Warns of drift."""

    def start(self, stage: MonitoredStage) -> Sequence[str]:
        # Statistics take a second to load, which no command that only looks at a recipe should wait
        # for.
        from alignkit_plugins.monitors.drift import Drift

        self.drift = Drift(stage.settings.iterations)
        return ()

    def look(
        self, iteration: int, groups: Sequence[Group], metrics: Mapping[str, Any]
    ) -> Observation:
        if not groups:  # people delete files; drift begins later then
            return Observation()
        return Observation(*self.drift.add(groups))


class Gold(Monitor):
    """Measures a reward that nothing learns from, and may end the stage when it falls."""

    class Options(Options):
        reward: RewardRef = Field(
            description="what is measured and never learned from, to see whether 'reward' is hacked"
        )
        prompts: DataRef = Field(
            default=None,
            description=(
                "held-out prompts, with two responses to each; default: the stage's own samples"
            ),
        )
        stop: bool = Field(
            default=False,
            description=(
                "end when gold has fallen from its best iteration by more than its interval; the "
                "result is the policy of the best iteration"
            ),
        )

    options: Options

    def check(self, settings: Settings) -> None:
        held_out = self.options.prompts is not None
        if held_out and settings.environment is not None:
            raise DataError(
                "'prompts' of gold cannot be played with an environment\nhelp: leave 'prompts' out"
            )
        if self.options.stop and settings.rollout.ahead and not held_out:
            # Its samples would say how good the policy was one update before the one that the stage
            # goes back to.
            raise DataError(
                "'stop' of gold would judge a policy by what the one before it wrote\n"
                "help: add 'prompts'"
            )
        if sum(isinstance(each.options, Gold.Options) for each in settings.monitors or ()) > 1:
            raise DataError("a stage has one gold\nhelp: combine the rewards")

    def start(self, stage: MonitoredStage) -> Sequence[str]:
        from alignkit_plugins.monitors.drift import History

        self.stage, self.rewards = stage, stage.scorer(self.options.reward)
        self.history = History(stage.settings.iterations)
        self.prompts: Sequence[Group] = ()
        if self.options.prompts is not None:
            self.prompts = stage.prompts(self.options.prompts)
        if self.options.reward == stage.settings.reward:
            return ["gold is the reward itself, so it cannot tell whether the reward is hacked"]
        return ()

    def look(
        self, iteration: int, groups: Sequence[Group], metrics: Mapping[str, Any]
    ) -> Observation:
        file = self.stage.folder / "gold" / f"{iteration:04d}.jsonl"
        if iteration > self.stage.done:
            if self.prompts:
                groups = self.stage.answer(self.prompts, SAMPLES, iteration)
            measured = list(map(_with_gold, groups, self.rewards.score(groups)))
            self.stage.on_rank0(lambda: write_groups(file, measured))
        scores: dict[str, list[float]] = {}
        numbers = {"gold_unscored": 0.0}
        for group in read_groups(file):
            for response in group.responses:
                score = response.scores[GOLD_KEY]
                if score is None:
                    numbers["gold_unscored"] += 1
                else:
                    scores.setdefault(group.id, []).append(score)
        self.history.add(iteration, scores)
        if not numbers["gold_unscored"]:
            numbers = {}
        if gold := list(chain.from_iterable(scores.values())):
            numbers |= {"gold": mean(gold), "gold_std": pstdev(gold)}
        stop = ""
        if self.options.stop and self.history.fell():
            stop = f"gold fell by more than its interval: {self.history.change()}"
        return Observation(numbers, stop=stop, best=self.history.best)

    def finish(self, stopped: str) -> Observation:
        """What gold did."""
        moved, best = self.history.change(), self.history.best
        warnings = []
        if self.history.fell() and not stopped:
            warnings = [f"gold was best in iteration {best} and has fallen since: {moved}"]
        summary = {"best_iteration": best, "change": moved and moved._asdict()}
        return Observation(warnings=warnings, summary={"gold": summary})


def _with_gold(group: Group, by_gold: Group) -> Group:
    """A group with the reward of another as its gold."""
    responses = []
    for response, other in zip(group.responses, by_gold.responses, strict=True):
        scores = {**response.scores, GOLD_KEY: other.scores.get(REWARD_KEY)}
        responses.append(replace(response, scores=scores))
    return replace(group, responses=tuple(responses))


class KLBudget(Monitor):
    """Ends a stage whose policy is too far from the reference."""

    class Options(Options):
        max: float = Field(
            gt=0,
            description=(
                "end when the KL to the reference exceeds this many nats per response that is "
                "learned from; the result is the last policy within this budget"
            ),
        )

    options: Options
    within = 0

    def start(self, stage: MonitoredStage) -> Sequence[str]:
        self.ahead = stage.settings.rollout.ahead
        return ()

    def look(
        self, iteration: int, groups: Sequence[Group], metrics: Mapping[str, Any]
    ) -> Observation:
        # NaN, the KL of no samples, is neither within the budget nor beyond it.
        kl, budget, stop = metrics.get("kl", float("nan")), self.options.max, ""
        if self.ahead and "kl" in metrics and "sampler_gap" not in metrics:
            raise RunFailed(
                "kl_budget with 'ahead' reads log-probabilities, and the engine tells none"
            )
        if kl > budget:
            stop = f"the KL of {kl:.3g} nats is beyond the budget of {budget:.3g}"
        elif kl <= budget:
            self.within = iteration
        return Observation(stop=stop, best=self.within)
