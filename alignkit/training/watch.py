"""Watches a stage's samples by its monitors; ends it early, and goes back to an earlier policy (docs/reports.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any, SupportsIndex

from alignkit import seeds
from alignkit.calls import call, create
from alignkit.data.group import Group, prompts_of, read_groups, write_groups
from alignkit.errors import DataError, RunFailed
from alignkit.io.atomic import discard_folder, replace_folder
from alignkit.models.generate import Sampling
from alignkit.monitor import GOLD_KEY, REWARD_HACKING, Monitor, Observation
from alignkit.plugins import plugins
from alignkit.recipe.components import options_of
from alignkit.registry import Component
from alignkit.reward import REWARD_KEY
from alignkit.settings import Settings
from alignkit.tokens.encoder import counted
from alignkit.training.context import StageContext
from alignkit.training.encoding import StageEncoder
from alignkit.training.rewards import Rewards
from alignkit.training.rollouts import RolloutFiles
from alignkit.training.stage import StageWork

SAMPLES = 2  # answers to each held-out prompt, enough to compare answers to one prompt

Sample = Callable[[Sequence[Group], Sampling, tuple[str | int, ...]], list[Group]]


class GoldMeasure:
    """Measures gold, and keeps what it measured in the stage's folder.

    sample: the current policy's answers to prompts, with the random streams of a place.
    """

    def __init__(self, context: StageContext, scorer: Rewards | None, encoder: StageEncoder, sampling: Sampling):
        settings = context.settings
        self.context, self.scorer = context, scorer
        self.gold = context.scorer(settings.gold)
        self.sampling = replace(sampling, samples_per_prompt=SAMPLES)
        self.prompts = self._held_out(encoder) if settings.gold_prompts is not None else None

    def _held_out(self, encoder: StageEncoder) -> list[Group]:
        context, settings, room = self.context, self.context.settings, self.sampling.max_new_tokens
        groups = encoder.prompts(prompts_of(context.load(settings.gold_prompts).groups))
        fitting = [group for group in groups if context.models.fits(group, encoder.max_length, room)]
        if not fitting:
            raise DataError(f"stage '{context.name}': no row of 'gold_prompts' is a prompt with room for a response")
        if len(fitting) < len(groups):
            left_out = counted(len(groups) - len(fitting), "prompt")
            context.say(f"gold_prompts: left out {left_out} without room for {room} new tokens")
        return fitting

    def measure(self, iteration: int, rollouts: Sequence[Group], sample: Sample) -> list[Group]:
        """Sample if there are held-out prompts, score by gold and by the stage's own reward, and write the samples."""
        groups = list(rollouts)
        if self.prompts is not None:
            groups = sample(self.prompts, self.sampling, (self.context.name, "gold", iteration))
            groups = self.scorer.score(groups) if self.scorer is not None else groups
        measured = [with_gold(group, by_gold) for group, by_gold in zip(groups, self.gold.score(groups), strict=True)]
        self.context.reducer.led(lambda: write_groups(self._file(iteration), measured))
        return measured

    def read(self, iteration: int) -> list[Group]:
        """What was measured before the stage was interrupted. Raises RunFailed if it is gone."""
        file = self._file(iteration)
        try:
            return read_groups(file)
        except DataError as error:
            raise RunFailed(
                f"{file}: what gold said cannot be read: {error}\n"
                f"help: delete {self.context.folder}, and the stage starts over"
            ) from error

    def _file(self, iteration: int) -> Path:
        return self.context.folder / "gold" / f"{iteration:04d}.jsonl"


def with_gold(group: Group, by_gold: Group) -> Group:
    """A group with the reward of another as its gold."""
    pairs = zip(group.responses, by_gold.responses, strict=True)
    scored = [replace(one, scores={**one.scores, GOLD_KEY: other.scores.get(REWARD_KEY)}) for one, other in pairs]
    return replace(group, responses=tuple(scored))


class CheckedMonitor:
    """Calls a monitor. Raises PluginError, with its plugin and method, for an author's mistake.

    best: the iteration that it would go back to; 0: none. warnings: those of its start.
    """

    def __init__(self, component: Component, settings: Settings, stage: str = ""):
        self.monitor: Monitor = create(component, stage)
        self.best = 0
        self.warnings = list(call(self.monitor, "start", settings) or ())

    def look(self, iteration: int, groups: Sequence[Group], gold: Sequence[Group] | None) -> Observation:
        """What the monitor says of an iteration."""

        def wrong(observation: Any) -> str:
            if text := _wrong_observation(observation):
                return text
            if observation.best in (0, self.best, iteration):
                return ""
            text = f"`best` is {observation.best!r:.60}: return this iteration, {iteration}, or that of the last look"
            return f"{text}, {self.best}; the weights of others are gone"

        observation: Observation = call(self.monitor, "look", iteration, groups, gold, returns=wrong)
        self.best = observation.best
        return observation

    def next_prompts(self, iteration: int, prompts: Sequence[Group], random: Any) -> list[int] | None:
        """The prompts that the monitor chooses, if it does."""

        def wrong(chosen: Any) -> str:
            chosen = chosen.tolist() if hasattr(chosen, "tolist") else chosen
            numbers = isinstance(chosen, Sequence) and all(isinstance(each, SupportsIndex) for each in chosen)
            if chosen is None or (numbers and chosen and all(each in range(len(prompts)) for each in chosen)):
                return ""
            return f"return indices of the {len(prompts)} prompts, or None, not {chosen!r:.60}"

        chosen = call(self.monitor, "next_prompts", iteration, prompts, random, returns=wrong)
        return None if chosen is None else [int(each) for each in chosen]

    def finish(self, stopped: str) -> Observation:
        """What the monitor says at the end."""
        observation: Observation = call(self.monitor, "finish", stopped, returns=_wrong_observation)
        return observation


def _wrong_observation(observation: Any) -> str:
    if not isinstance(observation, Observation):
        return f"return an alignkit.Observation, not {observation!r:.60}"
    if isinstance(observation.warnings, str):
        return "`warnings` is a text: return a list of texts"
    for name in ("metrics", "summary"):
        try:
            json.dumps(getattr(observation, name))
        except (TypeError, ValueError) as error:
            return f"`{name}` is not JSON: {error}"
    return ""


class StageWatch:
    """What is known of a stage's samples so far.

    stopped: why the stage ends early, or empty. best: the iteration whose weights it then ends with. chooses: whether a
    monitor may choose the prompts.
    """

    def __init__(self, work: StageWork, scorer: Rewards | None, sampling: Sampling, sample: Sample):
        context, settings = work.context, work.settings
        self.context, self.work, self.sample = context, work, sample
        self.budget = settings.stop.kl if settings.stop is not None else None  # KL in nats
        self.gold = GoldMeasure(context, scorer, work.encoder, sampling) if settings.gold is not None else None
        ours = plugins().registry.get("monitor", REWARD_HACKING)
        components = [Component("monitor", REWARD_HACKING, ours, options_of(ours)()), *(settings.monitors or ())]
        self.monitors = [CheckedMonitor(component, settings, context.name) for component in components]
        self.chooses = any(type(one.monitor).next_prompts is not Monitor.next_prompts for one in self.monitors)
        self.warn([warning for monitor in self.monitors for warning in monitor.warnings])
        self.stopped, self.best = "", 0
        self._wish = ("", 0)  # why a monitor would end the stage in this iteration, and the iteration to go back to
        self._within = 0  # the last iteration within the KL budget
        # Iterations that the two checkpoints on the disk may go back to, the older one first.
        self._checkpointed: tuple[set[int], set[int]] = (set(), set())

    # What the samples say

    def restore(self, iterations: int, files: RolloutFiles) -> None:
        """See again what earlier iterations sampled. Raises RunFailed if that is gone, and a monitor chooses by it."""
        self.stopped = str(self.work.summary.get("stopped", ""))
        self.best = int(self.work.summary.get("kept_iteration", 0))
        self._within = int(self.work.done.get("within_kl", 0))
        self._forget(lambda number: number <= iterations)  # later ones are sampled again
        for number in range(1, iterations + 1):
            groups = files.seen(number, needed=self.chooses)
            gold = self.gold.read(number) if self.gold is not None else None
            for monitor in self.monitors:
                monitor.look(number, groups, gold)
        self._checkpointed = (self._remembered(), self._wanted)

    def next_prompts(self, number: int, prompts: Sequence[Group]) -> list[int] | None:
        """The prompts that a monitor chooses for an iteration."""
        name = self.context.seed, self.context.name, "next_prompts", number
        chosen = (monitor.next_prompts(number, prompts, seeds.stream(*name)) for monitor in self.monitors)
        return next((each for each in chosen if each is not None), None)

    def look(self, number: int, groups: list[Group]) -> dict[str, Any]:
        """The metrics of an iteration's scored samples. Warnings are printed."""
        gold = self.gold.measure(number, groups, self.sample) if self.gold is not None else None
        observations = [monitor.look(number, groups, gold) for monitor in self.monitors]
        self._report(observations)
        if any(each.best == number for each in observations):
            self._remember(number)
        self._wish = next(((each.stop, each.best or number) for each in observations if each.stop), ("", 0))
        return {name: value for each in observations for name, value in each.metrics.items()}

    def finish(self) -> None:
        """Report what the monitors say at the end."""
        self._report([monitor.finish(self.stopped) for monitor in self.monitors])

    def _report(self, observations: Sequence[Observation]) -> None:
        for each in observations:
            self.warn(each.warnings)
            self.work.summary |= each.summary

    def warn(self, warnings: Sequence[str]) -> None:
        """Print warnings, which the report shows, too."""
        for warning in warnings:
            self.context.say(f"warning: {warning}")

    # Stopping

    def stops(self, number: int, kl: float | None) -> bool:
        """Whether the stage ends before this iteration learns.

        kl: of its samples, in nats; None if not measured. NaN, that of no samples, is neither within a budget nor
        beyond it.
        """
        if self.budget is not None and kl is not None and not math.isnan(kl):
            if kl > self.budget:
                why = f"the KL of {kl:.3g} nats is beyond the budget of {self.budget:.3g}"
                self._end(number, why, self._within or number)
                return True
            self._within = number
            self._remember(number)
        if self._wish[0]:
            self._end(number, *self._wish)
        return bool(self.stopped)

    @property
    def _wanted(self) -> set[int]:
        """The iterations whose weights a rule or a monitor may go back to."""
        return {self._within, *(monitor.best for monitor in self.monitors)}

    @property
    def checkpoint(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"within_kl": self._within}

    def checkpointed(self) -> None:
        """A checkpoint is written: forget the weights that only one that is gone could go back to."""
        self._checkpointed = (self._checkpointed[1], self._wanted)
        if not self.stopped:
            self._forget(set.union(*self._checkpointed).__contains__)

    def save(self) -> None:
        """Write the stage's result: the last weights, or those of the iteration that a stop rule goes back to."""
        if not self.stopped:
            self.work.save()
        self.context.reducer.led(self._settle)

    def _settle(self) -> None:
        """Take the weights that a stop rule goes back to, and forget the others that one could go back to."""
        if self.stopped:
            kept = self._weights(self.best)
            if not kept.is_dir():
                raise RunFailed(
                    f"stage '{self.context.name}': the weights of iteration {self.best} are gone: {kept}\n"
                    f"help: delete {self.context.folder}, and the stage starts over"
                )
            with replace_folder(self.context.adapter) as new:
                copytree(kept, new, dirs_exist_ok=True)
        if (folder := self._weights(0).parent).is_dir():
            discard_folder(folder)

    def _end(self, number: int, why: str, best: int) -> None:
        if best == number and not self.context.reducer.led(self._weights(best).is_dir):
            self._remember(best)
        self.stopped, self.best = why, best
        planned = self.work.settings.iterations or 1
        counts = {"iterations": number, "planned_iterations": planned, "kept_iteration": best}
        self.work.summary |= {"stopped": why, **counts}
        told = f"stopped in iteration {number} of {planned}: {why}; the result is the policy that iteration {best}"
        # Samples that were written ahead are from the policy before it.
        self.context.say(f"{told} {'began with' if self.work.settings.rollout.ahead else 'sampled from'}")
        if best == 1:
            start = self.work.roles.start
            self.context.say(f"warning: the result is '{start}', and nothing was learned: {self._advice(number)}")

    def _advice(self, number: int) -> str:
        """Why nothing that the stage learned is kept, and what to change."""
        rate = f"a learning_rate below {self.work.learner.peak_rate:g}"
        if self.budget is None:
            best = "gold was best" if self.gold is not None else "the policy that a monitor keeps is that"
            return f"{best} before the first update. Set {rate}, or another reward"
        if number == 1:
            return "it was beyond the budget before the first update. Set a larger `stop: {kl: ...}`"
        return f"the first update went beyond the budget. Set a larger `stop: {{kl: ...}}`, or {rate}"

    def _remember(self, number: int) -> None:
        """Save the weights that this iteration sampled from, and forget those that no rule can go back to."""
        self.work.save(self._weights(number))
        wanted = {number}.union(self._wanted, *self._checkpointed)
        self._forget(wanted.__contains__)

    def _forget(self, wanted: Callable[[int], bool]) -> None:
        """Discard the weights of all other iterations."""

        def discard() -> None:
            for number in self._remembered():
                if not wanted(number):
                    discard_folder(self._weights(number))

        self.context.reducer.led(discard)

    def _remembered(self) -> set[int]:
        """The iterations whose weights are on the disk."""
        parent = self._weights(0).parent
        return {int(each.name) for each in parent.iterdir() if each.name.isdecimal()} if parent.is_dir() else set()

    def _weights(self, number: int) -> Path:
        return self.context.folder / "rollback" / str(number)
