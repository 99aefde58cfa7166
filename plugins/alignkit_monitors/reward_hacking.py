"""The monitor of every stage in iterations: drift, and whether gold falls (docs/reports.md)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean as mean
from typing import Any

from alignkit import Group, Monitor, Observation
from alignkit.settings import Settings, Stop
from alignkit_monitors.snapshot import Look, look_at


class RewardHacking(Monitor):
    """Warns of drift and of gold that falls, and carries out `stop: {gold: falls}`."""

    def start(self, settings: Settings) -> Sequence[str]:
        # Statistics take a second to load, which no command that only looks at a recipe should wait for.
        from alignkit_monitors.drift import Drift
        from alignkit_monitors.estimates import Gold

        self.rules = settings.stop or Stop()
        iterations = settings.iterations or 1
        self.drift, self.history = Drift(iterations), Gold(iterations)
        self.has_gold = settings.gold is not None
        if self.has_gold and settings.gold == settings.reward:
            return ["gold is the reward itself, so it cannot tell whether the reward is hacked"]
        return []

    def look(self, iteration: int, groups: Sequence[Group], gold: Sequence[Group] | None) -> Observation:
        metrics: dict[str, float] = {}
        warnings: list[str] = []
        if groups:  # people delete files; drift begins later then
            metrics, warnings = self.drift.add(look_at(groups))
        if gold is not None:
            look = look_at(gold)
            metrics |= _gold_metrics(look)
            self.history.add(iteration, look.means("gold"))
        stop = ""
        if self.rules.gold == "falls" and self.history.fell():
            stop = f"gold fell by more than its interval: {self.history.change()}"
        return Observation(metrics, warnings, {}, stop, self.history.best if self.rules.gold is not None else 0)

    def finish(self, stopped: str) -> Observation:
        """What gold did."""
        if not self.has_gold:
            return Observation()
        moved, best = self.history.change(), self.history.best
        summary: dict[str, Any] = {"gold": {"best_iteration": best, "change": moved and moved._asdict()}}
        warnings = []
        if self.history.fell() and not stopped:
            warnings.append(f"gold was best in iteration {best} and has fallen since: {moved}")
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
