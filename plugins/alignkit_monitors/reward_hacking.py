"""The monitor of every stage in iterations: drift, what the reward pays for, and gold (docs/reports.md)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean as mean
from typing import TYPE_CHECKING, Any

from alignkit import Group, Monitor, Observation, Register, hookimpl
from alignkit.monitor import REWARD_HACKING
from alignkit.settings import Settings, Stop
from alignkit_monitors.snapshot import Look, look_at

if TYPE_CHECKING:
    from alignkit_monitors.alarm import Hacking


class RewardHacking(Monitor):
    """Warns of drift and of reward hacking, and carries out `stop: {gold: falls, hacking: true}`."""

    def start(self, settings: Settings) -> Sequence[str]:
        # Statistics take a second to load, which no command that only looks at a recipe should wait for.
        from alignkit_monitors.alarm import Alarm
        from alignkit_monitors.drift import Drift
        from alignkit_monitors.estimates import Gold

        self.rules = settings.stop or Stop()
        iterations = settings.iterations or 1
        looks = -(-iterations // (settings.gold_every or 1))
        self.drift, self.alarm, self.history = Drift(iterations), Alarm(looks), Gold(looks)
        self.hacking: Hacking | None = None
        self.has_gold = settings.gold is not None
        warnings = []
        if self.has_gold and settings.gold_prompts is None and settings.rollout.samples_per_prompt == 1:
            warnings.append(
                "with one response to each prompt nobody can tell what the reward pays for, so there is no alarm "
                "against reward hacking; set 'gold_prompts', or 'rollout: {samples_per_prompt: 2}'"
            )
        if self.has_gold and settings.gold == settings.reward:
            warnings.append("gold is the reward itself, so it cannot tell whether the reward is hacked")
        return warnings

    def look(self, iteration: int, groups: Sequence[Group], gold: Sequence[Group] | None) -> Observation:
        metrics: dict[str, float] = {}
        warnings: list[str] = []
        summary: dict[str, Any] = {}
        if groups:  # people delete files; drift begins later then
            metrics, warnings = self.drift.add(look_at(iteration, groups))
        if gold is not None:
            look = look_at(iteration, gold)
            metrics |= _gold_metrics(look)
            self.history.add(iteration, look.means("gold"))
            if (hacking := self.alarm.add(look)) is not None and self.hacking is None:  # raised once
                self.hacking = hacking
                warnings.append(str(hacking))
                bought = [each.what for each in hacking.bought]
                summary["hacking"] = {"iteration": iteration, "bought": bought, "sentence": str(hacking)}
        best = self.history.best if self.rules.gold is not None or self.rules.hacking else 0
        return Observation(metrics, warnings, summary, self._stop(), best)

    def _stop(self) -> str:
        """Why the stage ends now, or empty."""
        if self.rules.hacking and self.hacking is not None:
            return "reward hacking"
        if self.rules.gold == "falls" and self.history.fell():
            return f"gold fell by more than its interval: {self.history.change()}"
        return ""

    def finish(self, stopped: str) -> Observation:
        """What the stage bought its reward with, and what gold did."""
        warnings = self.drift.bought() if self.hacking is None else []
        summary: dict[str, Any] = {"bought": list(warnings)} if warnings else {}
        if self.has_gold:
            moved = self.history.change()
            summary["gold"] = {"best_iteration": self.history.best, "change": moved and moved._asdict()}
            if self.history.fell() and not stopped:
                warnings.append(f"gold was best in iteration {self.history.best} and has fallen since: {moved}")
        return Observation(warnings=warnings, summary=summary)


def _gold_metrics(look: Look) -> dict[str, float]:
    """Mean and deviation of gold, and how many answers have none. Nothing else if none has a score."""
    scores = [answer.gold for answer in look.answers if answer.gold is not None]
    missing = len(look.answers) - len(scores)
    counts: dict[str, float] = {"gold_unscored": missing} if missing else {}
    if not scores:
        return counts
    middle = mean(scores)
    return {"gold": middle, "gold_std": mean([(score - middle) ** 2 for score in scores]) ** 0.5, **counts}


@hookimpl
def register_monitors(register: Register) -> None:
    register(REWARD_HACKING, RewardHacking, summary="drift, what the reward pays for, and whether gold falls")
