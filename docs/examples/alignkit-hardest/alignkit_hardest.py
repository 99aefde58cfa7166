"""A monitor of the hardest prompts, which stage.json lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import alignkit as ak


class Hardest(ak.Monitor):
    """Follows the mean reward of each prompt, which should be 0 to 1."""

    class Options(ak.Options):
        memory: float = ak.Field(
            0.5, ge=0, lt=1, description="weight of a prompt's earlier rewards in its mean"
        )

    options: Options

    def __init__(self, options: Options):
        super().__init__(options)
        # By the prompt's id: its words, times asked, mean reward
        self.solved: dict[str, tuple[str, int, float]] = {}

    def observe(
        self, iteration: int, groups: Sequence[ak.Group], metrics: Mapping[str, Any]
    ) -> ak.MonitorReport:
        for group in groups:
            rewards = [
                r.scores["reward"] for r in group.responses if r.scores.get("reward") is not None
            ]
            if rewards:
                new = fmean(rewards)
                words, asked, old = self.solved.get(group.id, (group.prompt[-1]["content"], 0, new))
                mean = self.options.memory * old + (1 - self.options.memory) * new
                self.solved[group.id] = words, asked + 1, mean
        hard = [mean < 0.5 for _, _, mean in self.solved.values()]
        return ak.MonitorReport({"hardest/share": sum(hard) / max(1, len(hard))})

    def finish(self, stopped: str) -> ak.MonitorReport:
        return ak.MonitorReport(
            summary={"hardest": sorted(self.solved.values(), key=lambda one: one[2])}
        )


@ak.hookimpl
def register(add: ak.Add) -> None:
    add("monitor", "hardest", Hardest, "lists the prompts that are solved least")
