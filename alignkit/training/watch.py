"""Watches a stage's samples for reward hacking, and ends the stage by its `stop` rules; training never sees any of it.

What an iteration sampled is what the policy was before the iteration's update. A stage that is stopped therefore ends
with the weights that the chosen iteration sampled from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from statistics import fmean as mean
from typing import Any

from alignkit.data.group import Group, read_groups
from alignkit.errors import RunFailed
from alignkit.io.atomic import discard_folder, replace_folder
from alignkit.models.sampling import Sampling
from alignkit.training.gold import GoldMeasure, Sample
from alignkit.training.scoring import Scorer
from alignkit.training.stage import StageWork
from alignkit.watching.alarm import Alarm, Hacking
from alignkit.watching.drift import Drift
from alignkit.watching.falling import Gold
from alignkit.watching.snapshot import Look, look_at


class StageWatch:
    """What is known of a stage's samples so far.

    stopped: why the stage ends early, or empty. best: the iteration whose weights it then ends with.
    """

    def __init__(self, work: StageWork, scorer: Scorer | None, sampling: Sampling, sample: Sample):
        context, settings = work.context, work.settings
        self.context, self.work, self.stop, self.sample = context, work, settings.stop, sample
        iterations = settings.iterations or 1
        self.gold = GoldMeasure(context, scorer, work.encoder, sampling) if settings.gold is not None else None
        looks = -(-iterations // (self.gold.every if self.gold else 1))
        self.drift, self.alarm, self.history = Drift(iterations), Alarm(looks), Gold(looks)
        self.hacking: Hacking | None = None
        self.stopped, self.best = "", 0
        self._within = 0  # the last iteration within the KL budget
        # Iterations that the two checkpoints on the disk may go back to, the older one first.
        self._checkpointed: tuple[set[int], set[int]] = (set(), set())

    # What the samples say

    def restore(self, iterations: int, files: Path) -> None:
        """See again what earlier iterations sampled. files: those of rollouts."""
        self.stopped = str(self.work.summary.get("stopped", ""))
        self.best = int(self.work.summary.get("kept_iteration", 0))
        self._within = int(self.work.done.get("within_kl", 0))
        self._forget(lambda number: number <= iterations)  # later ones are sampled again
        for number in range(1, iterations + 1):
            if (file := files / f"{number:04d}.jsonl").is_file():  # people delete them; drift begins later then
                self.drift.add(look_at(number, read_groups(file)))
            if self.gold is not None and self.gold.due(number):
                self._learn(self.gold.read(number))
        self._checkpointed = (self._remembered(), {self._within, self.history.best})

    def look(self, number: int, groups: list[Group]) -> dict[str, Any]:
        """The metrics of an iteration's scored samples. Warnings are printed."""
        metrics, warnings = self.drift.add(look_at(number, groups))
        found: dict[str, Any] = dict(metrics)
        if self.gold is not None and self.gold.due(number):
            look = self.gold.measure(number, groups, self.sample)
            warnings += self._learn(look)
            found |= _gold_metrics(look)
            if self._follows_gold and self.history.best == number:
                self._remember(number)
        for warning in warnings:
            self.context.say(f"warning: {warning}")
        return found

    def _learn(self, look: Look) -> list[str]:
        """What gold says; the alarm is raised once."""
        self.history.add(look.iteration, look.means("gold"))
        hacking = self.alarm.add(look)
        if hacking is None or self.hacking is not None:
            return []
        self.hacking = hacking
        self.work.summary["hacking"] = {
            "iteration": hacking.iteration,
            "bought": [bought.what for bought in hacking.bought],
            "sentence": str(hacking),
        }
        return [str(hacking)]

    # Stopping

    def stops(self, number: int, kl: float | None) -> bool:
        """Whether the stage ends before this iteration learns.

        kl: of its samples, in nats; None if not measured. NaN, that of no samples, is neither within a budget nor
        beyond it.
        """
        rules = self.stop
        if rules is None:
            return False
        if rules.kl is not None and kl is not None and not math.isnan(kl):
            if kl > rules.kl:
                self._end(
                    number, f"the KL of {kl:.3g} nats is beyond the budget of {rules.kl:.3g}", self._within or number
                )
                return True
            self._within = number
            self._remember(number)
        if rules.hacking and self.hacking is not None:
            self._end(number, "reward hacking", self.history.best)
        elif rules.gold == "falls" and self.history.fell():
            self._end(number, f"gold fell by more than its interval: {self.history.change()}", self.history.best)
        return bool(self.stopped)

    @property
    def has_budget(self) -> bool:
        """Whether the KL decides when the stage ends."""
        return self.stop is not None and self.stop.kl is not None

    @property
    def checkpoint(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"within_kl": self._within}

    def checkpointed(self) -> None:
        """A checkpoint is written: forget the weights that only one that is gone could go back to."""
        self._checkpointed = (self._checkpointed[1], {self._within, self.history.best})
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

    def finish(self) -> None:
        """Say what the stage bought its reward with, and what gold did."""
        for sentence in [] if self.hacking is not None else self.drift.bought():
            self.context.say(f"warning: {sentence}")
            self.work.summary.setdefault("bought", []).append(sentence)
        if self.gold is None:
            return
        moved = self.history.change()
        self.work.summary["gold"] = {"best_iteration": self.history.best, "change": moved and moved._asdict()}
        if self.history.fell() and not self.stopped:
            self.context.say(f"warning: gold was best in iteration {self.history.best} and has fallen since: {moved}")

    @property
    def _follows_gold(self) -> bool:
        return self.stop is not None and (self.stop.gold is not None or self.stop.hacking)

    def _end(self, number: int, why: str, best: int) -> None:
        if best == number and not self.context.reducer.led(self._weights(best).is_dir):
            self._remember(best)
        self.stopped, self.best = why, best
        planned = self.work.settings.iterations or 1
        counts = {"iterations": number, "planned_iterations": planned, "kept_iteration": best}
        self.work.summary |= {"stopped": why, **counts}
        told = f"stopped in iteration {number} of {planned}: {why}; the result is the policy that iteration {best}"
        self.context.say(f"{told} sampled from")
        if best == 1:
            start = self.work.roles.start
            self.context.say(f"warning: the result is '{start}', and nothing was learned: {self._advice(number)}")

    def _advice(self, number: int) -> str:
        """Why nothing that the stage learned is kept, and what to change."""
        rate = f"a learning_rate below {self.work.learner.peak_rate:g}"
        if not self.has_budget:
            return f"gold was best before the first update. Set {rate}, or another reward"
        if number == 1:
            return "it was beyond the budget before the first update. Set a larger `stop: {kl: ...}`"
        return f"the first update went beyond the budget. Set a larger `stop: {{kl: ...}}`, or {rate}"

    def _remember(self, number: int) -> None:
        """Save the weights that this iteration sampled from, and forget those that no rule can go back to."""
        self.work.save(self._weights(number))
        wanted = {self._within, self.history.best, number}.union(*self._checkpointed)
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


def _gold_metrics(look: Look) -> dict[str, Any]:
    """Mean and deviation of gold, and how many answers have none. Nothing else if none has a score."""
    scores = [answer.gold for answer in look.answers if answer.gold is not None]
    missing = look.missing("gold")
    found: dict[str, Any] = {"gold_unscored": missing} if missing else {}
    if not scores:
        return found
    middle = mean(scores)
    return {"gold": middle, "gold_std": mean([(score - middle) ** 2 for score in scores]) ** 0.5, **found}
