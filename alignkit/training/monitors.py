"""What watches the samples of a stage, and may end it: monitors, gold, and a budget of KL.

A stage that may go back keeps the versions of its policy until it ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

from alignkit import seeds, shapes
from alignkit.calls import call, create
from alignkit.data.group import Group, read_groups, write_groups
from alignkit.errors import RunFailed
from alignkit.io.atomic import discard_folder, replace_folder
from alignkit.kinds import GOLD_KEY, REWARD_HACKING, Monitor, Observation
from alignkit.plugins import plugins
from alignkit.recipe.references import options_of
from alignkit.registry import Component
from alignkit.reward import REWARD_KEY
from alignkit.training.requests import Request
from alignkit.training.rewards import Rewards
from alignkit.training.rollouts import RolloutFiles, usable_prompts
from alignkit.training.stage import TrainerState

SAMPLES = 2  # answers to each held-out prompt, enough to compare answers to one prompt


def look(monitor: Monitor, number: int, groups: Sequence[Group], gold: Sequence[Group] | None) -> Observation:
    """What a monitor says of an iteration."""
    seen: Observation = call(monitor, "look", number, groups, gold, returns=partial(shapes.observation, number))
    return seen


def next_prompts(monitor: Monitor, number: int, prompts: Sequence[Group], random: Any) -> list[int] | None:
    """The prompts that a monitor chooses for an iteration, if it does."""
    wanted = partial(shapes.indices, prompts)
    chosen = call(monitor, "next_prompts", number, prompts, random, returns=wanted)
    return None if chosen is None else list(map(int, chosen))


def with_gold(group: Group, by_gold: Group) -> Group:
    """A group with the reward of another as its gold."""
    pairs = zip(group.responses, by_gold.responses, strict=True)
    scored = [replace(one, scores={**one.scores, GOLD_KEY: other.scores.get(REWARD_KEY)}) for one, other in pairs]
    return replace(group, responses=tuple(scored))


class Monitors:
    """All that watches a stage's samples, and the policies that it may go back to.

    files: of the stage's samples. chooses: whether a monitor may choose the prompts. within: the last iteration within
    the budget of KL.
    """

    def __init__(self, trainer: TrainerState, rewards: Rewards, files: RolloutFiles):
        context, settings = trainer.context, trainer.settings
        self.context, self.trainer, self.rewards, self.files = context, trainer, rewards, files
        self.budget = settings.stop.kl if settings.stop is not None else None  # in nats
        self.gold = context.scorer(settings.gold)
        self.held_out: list[Group] | None = None
        if settings.gold_prompts is not None:
            _, self.held_out = usable_prompts(trainer, "gold_prompts")
        components = list(settings.monitors or ())
        if plugins().registry.has("monitor", REWARD_HACKING):
            ours = plugins().registry.get("monitor", REWARD_HACKING)
            components.insert(0, Component("monitor", REWARD_HACKING, ours, options_of(ours)()))
        self.monitors: list[Monitor] = [create(component, context.name) for component in components]
        self.chooses = any(type(monitor).next_prompts is not Monitor.next_prompts for monitor in self.monitors)
        for monitor in self.monitors:
            self.warn(call(monitor, "start", settings) or ())
        trainer.keeps |= settings.stop is not None or bool(settings.monitors)
        self.within = 0

    @property
    def stopped(self) -> str:
        """Why the stage ends early; empty if it does not."""
        return str(self.trainer.summary.get("stopped", ""))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"within": self.within}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See again what earlier iterations sampled. Raises RunFailed if that is gone, and a monitor chooses by it."""
        self.within = state["within"]
        for number in range(1, len(self.files.digests) + 1):
            groups = self.files.seen(number, needed=self.chooses)
            for monitor in self.monitors:
                look(monitor, number, groups, self._read_gold(number))

    def next_prompts(self, number: int, prompts: Sequence[Group]) -> list[int] | None:
        """The prompts that a monitor chooses for an iteration."""
        for monitor in self.monitors:
            random = seeds.stream(self.context.seed, self.context.name, "next_prompts", number)
            if (chosen := next_prompts(monitor, number, prompts, random)) is not None:
                return chosen
        return None

    def look(self, number: int, groups: list[Group], kl: float | None) -> dict[str, Any]:
        """The metrics of an iteration's scored samples; it may end the stage. kl: of the samples, in nats."""
        gold = self._measure_gold(number, groups)
        observations = [self._look_at_kl(number, kl)]
        observations += [look(monitor, number, groups, gold) for monitor in self.monitors]
        metrics: dict[str, Any] = {}
        for each in observations:
            self._report(each)
            metrics |= each.metrics
            if each.stop and not self.stopped:
                self._stop(number, each.stop, each.best or number)
        return metrics

    def _look_at_kl(self, number: int, kl: float | None) -> Observation:
        """Whether the samples are within the budget. NaN, the KL of no samples, is neither within it nor beyond it."""
        if self.budget is None or kl is None or math.isnan(kl):
            return Observation(best=self.within)
        if kl > self.budget:
            why = f"the KL of {kl:.3g} nats is beyond the budget of {self.budget:.3g}"
            return Observation(stop=why, best=self.within)
        self.within = number
        return Observation(best=number)

    def _stop(self, number: int, why: str, best: int) -> None:
        planned = self.trainer.settings.iterations or 1
        counts = {"iterations": number, "planned_iterations": planned, "kept_iteration": best}
        self.trainer.summary |= {"stopped": why, **counts}
        result = f"the result is the policy that iteration {best} began with"
        self.warn([f"stopped in iteration {number} of {planned}: {why}; {result}"])

    def _report(self, seen: Observation) -> None:
        self.warn(seen.warnings)
        self.trainer.summary |= seen.summary

    def warn(self, warnings: Sequence[str]) -> None:
        """Print warnings, which the report shows, too."""
        for warning in warnings:
            self.context.say(f"warning: {warning}")

    # Gold

    def _measure_gold(self, number: int, groups: Sequence[Group]) -> list[Group] | None:
        """The samples, or answers to held-out prompts, with what gold says of them, which the stage's folder keeps."""
        if self.gold.root is None:
            return None
        if self.held_out is not None:
            path = self.context.name, "gold", number
            groups = self.rewards.score(Request(self.trainer, self.held_out, SAMPLES, path).result())
        measured = [with_gold(group, by_gold) for group, by_gold in zip(groups, self.gold.score(groups), strict=True)]
        self.context.collectives.on_rank0(lambda: write_groups(self._gold_file(number), measured))
        return measured

    def _read_gold(self, number: int) -> list[Group] | None:
        if self.gold.root is None:
            return None
        return read_groups(self._gold_file(number))

    def _gold_file(self, number: int) -> Path:
        return self.context.folder / "gold" / f"{number:04d}.jsonl"

    # The result

    def finish(self) -> None:
        """Report what the monitors say at the end, and write the stage's result."""
        for monitor in self.monitors:
            self._report(call(monitor, "finish", self.stopped, returns=partial(shapes.observation, 0)))
        if not self.stopped:
            self.trainer.save()
        self.context.collectives.on_rank0(self._settle)

    def _settle(self) -> None:
        """Take the version that a rule goes back to, and discard those that nobody asked for."""
        kept = self.trainer.kept
        if self.stopped:
            # The policy that an iteration sampled from is the version after the one before.
            version = kept / str(int(self.trainer.summary["kept_iteration"]) - 1)
            if version.is_dir():
                with replace_folder(self.context.adapter) as new:
                    copytree(version, new, dirs_exist_ok=True)
            elif not self.context.adapter.is_dir():  # else a start that was killed has settled already
                raise RunFailed(
                    f"stage '{self.context.name}': the weights to go back to are gone: {version}\n"
                    f"help: delete {self.context.folder}, and the stage starts over"
                )
        unasked = kept
        if self.trainer.settings.keep_versions:
            unasked = kept / "0"
        if unasked.is_dir():
            discard_folder(unasked)
