"""A curriculum: prompts that the policy solves now and then are asked more often; the report lists the hardest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import alignkit as ak

if TYPE_CHECKING:
    from numpy.random import Generator


class Curriculum(ak.Monitor):
    """Draws prompts with weights p (1 - p) + floor, where p is a prompt's mean reward, which should be 0 to 1.

    So a prompt is likelier the more its rewards vary, as GRPO learns nothing from equal ones. One that was never
    answered counts as if p were 1/2.
    """

    class Options(ak.Options):
        floor: float = ak.Field(0.05, gt=0, description="weight of prompts that are always or never solved")
        memory: float = ak.Field(0.5, ge=0, lt=1, description="weight of a prompt's earlier rewards in its mean")

    options: Options

    def __init__(self, options: Options):
        super().__init__(options)
        self.solved: dict[str, tuple[str, int, float]] = {}  # by the prompt's id: its words, times asked, mean reward

    def look(self, iteration: int, groups: Sequence[ak.Group], gold: Sequence[ak.Group] | None) -> ak.Observation:
        for group in groups:
            rewards = [r.scores["reward"] for r in group.responses if r.scores.get("reward") is not None]
            if rewards:
                new = float(np.mean(rewards))
                words, asked, old = self.solved.get(group.id, (group.prompt[-1]["content"], 0, new))
                mean = self.options.memory * old + (1 - self.options.memory) * new
                self.solved[group.id] = words, asked + 1, mean
        hard = [mean < 0.5 for _, _, mean in self.solved.values()]
        return ak.Observation({"curriculum/hard": sum(hard) / max(1, len(hard))})

    def next_prompts(self, iteration: int, prompts: Sequence[ak.Group], random: Generator) -> list[int]:
        means = np.array([self.solved.get(prompt.id, ("", 0, 0.5))[2] for prompt in prompts])
        weights = np.clip(means * (1 - means), 0, None) + self.options.floor
        return list(random.choice(len(prompts), len(prompts), replace=False, p=weights / weights.sum()))

    def finish(self, stopped: str) -> ak.Observation:
        return ak.Observation(summary={"curriculum": sorted(self.solved.values(), key=lambda one: one[2])})


@ak.hookimpl
def register(add: ak.Add) -> None:
    add("monitor", "curriculum", Curriculum, "asks prompts more often that are solved now and then")


@ak.hookimpl
def report_parts(records: Sequence[Mapping[str, Any]]) -> dict[str, ak.Report]:
    """Only for runs with a stage that has a curriculum."""
    tables = []
    for record in records:
        rows = [[words, f"{asked}", f"{mean:.2f}"] for words, asked, mean in record["summary"].get("curriculum", ())]
        if rows:
            tables.append(ak.Table(f"{record['name']}: the hardest prompts", ["prompt", "asked", "reward"], rows[:10]))
    return {"Curriculum": ak.Report(tables)} if tables else {}
