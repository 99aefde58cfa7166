"""A stage that is interrupted goes on and ends as one that was not: the same weights, samples,
metrics and summary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from watched import weights

from alignkit.io.results import read_record
from tests.rows import run, untimed, with_plugin, write_recipe, write_rows

pytestmark = pytest.mark.usefixtures("one_thread")

# What remembers something from step to step, and what ends a run after a step.
PLUGIN = """
import os
from alignkit import *
from alignkit_plugins.algorithms.sft import SFT

class Growing(RewardCombination):
    class Options(Options):
        part: RewardRef
    def parts(self):
        return {"part": self.options.part}
    def combine(self, groups, components):
        factor = self.state["factor"] = self.state.get("factor", 0.0) + 1.0
        return CombinedReward(components["part"] * factor, {"factor": factor})

class Dice(Environment):
    def reset(self, row):
        return f" (hint {self.random.integers(1000)})"
    def respond(self, turn):
        if len(self.turns) < 5:
            return [{"role": "user", "content": str(self.random.integers(1000))}]
    def get_reward(self):
        return float(sum(len(turn["content"]) for turn in self.turns) % 7)

class Counts(Monitor):
    def start(self, stage):
        self.seen = []
    def observe(self, iteration, groups, metrics):
        self.seen.append([response.reward for group in groups for response in group.responses])
        return MonitorReport({"counts/first": self.seen[0][0]}, [], {}, "", 1)
    def finish(self, stopped):
        return MonitorReport(summary={"counts": self.seen})

class Knows(SFT):
    '''Leaves out as many held-out rows as it has made steps.'''
    def select(self, groups, context):
        self.state.setdefault("steps", 0)
        return groups[self.state["steps"] :] if context.validation else groups
    def before_step(self, batch, out):
        return {"steps": self.state["steps"] + 1}

@hookimpl
def register(add):
    add("reward", "growing", Growing)
    add("environment", "dice", Dice)
    add("monitor", "counts", Counts)
    add("algorithm", "knows", Knows)

@hookimpl
def metrics_logged(run, stage, step, metrics):
    if os.environ.get("INTERRUPT") == str(step):
        raise KeyboardInterrupt
"""
OFFLINE = """
    algorithm: sft
    data: demos.jsonl
    batch_size: 2
    epochs: 2
    max_length: 128
    checkpoint_every: 1
"""
ONLINE = """
    algorithm: rloo
    prompts: prompts.jsonl
    reward: {length: {unit: characters}}
    rollout: {samples_per_prompt: 2, max_new_tokens: 6}
    iterations: 4
    prompts_per_iteration: 3
    batch_size: 2
    learning_rate: 0.01
"""
STAGES = {
    "a data set": (OFFLINE, ""),
    "weights of sources": (
        OFFLINE,
        "data: [{path: demos.jsonl, weight: 0.7}, {path: others.jsonl, weight: 0.3}]",
    ),
    "a choice of held-out rows": (
        OFFLINE,
        "{algorithm: knows, data: {path: others.jsonl, validation: 0.5}}",
    ),
    "a combination's state, and batches that are filled": (
        ONLINE,
        """
        reward: {growing: {part: {length: {unit: characters}}}}
        rollout:
          samples_per_prompt: 2
          max_new_tokens: 6
          max_num_gen_batches: 9
          filters: [{reward_range: {low: 6}}]
        """,
    ),
    "an environment": (
        ONLINE,
        """
        environment: dice
        reward: environment
        rollout: {samples_per_prompt: 2, max_new_tokens: 20}
        """,
    ),
    "monitors": (
        ONLINE,
        """
        monitors: [counts, {gold: {reward: {length: {unit: words}}, prompts: held_out.jsonl}}]
        """,
    ),
    "a value head on the policy's own states": (ONLINE, "algorithm: {ppo: {shared_value: true}}"),
    "adaptive KL and a mix": (
        ONLINE,
        """
        algorithm: {ppo: {kl_target: 0.05, kl_horizon: 20}}
        mix: {data: demos.jsonl, objective: sft, weight: 0.1, batch_size: 2}
        """,
    ),
}


@pytest.mark.silent_bug(
    "resume: state",
    "The trainer's state is saved but not restored.",
    "A stopped run continues with the rewards of an uninterrupted one.",
    "allenai/open-instruct#1523",
)
@pytest.mark.silent_bug(
    "resume: data",
    "Batches are skipped in every epoch or not at all, and the schedule advances twice.",
    "Batch and learning rate follow from the number of the step.",
    "thinking-machines-lab/tinker-cookbook#448",
    "allenai/open-instruct#681",
    "THUDM/slime#1547",
)
@pytest.mark.parametrize("name", STAGES)
def test_an_interrupted_stage_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Interrupted in the middle of its first epoch, or in its third iteration."""
    kind, more = STAGES[name]
    demos = [{"prompt": f"is it {n}?", "completion": "yes " * (n + 1)} for n in range(16)]
    too_long = {"prompt": "why " * 200, "completion": "yes"}
    write_rows(tmp_path / "demos.jsonl", [*demos[:6], too_long])
    write_rows(tmp_path / "others.jsonl", demos)
    for file, count in {"prompts": 7, "held_out": 2}.items():
        write_rows(tmp_path / f"{file}.jsonl", [{"prompt": f"{file} {n}?"} for n in range(count)])
    stage = yaml.safe_load(kind) | (yaml.safe_load(more) or {})
    recipe = write_recipe(tmp_path, {"only": stage})
    plugin = with_plugin(tmp_path / "plugin.py", PLUGIN)
    whole, stopped = run(recipe, *plugin), tmp_path / "stopped"
    monkeypatch.setenv("INTERRUPT", "3")
    run(recipe, *plugin, out=stopped, code=130)
    monkeypatch.delenv("INTERRUPT")
    if "monitors" not in stage:  # else nobody needs the samples that were learned from
        (stopped / "only" / "rollouts" / "0001.jsonl").unlink(missing_ok=True)
    assert result(run(recipe, *plugin, out=stopped)) == result(whole)


def result(folder: Path) -> dict[str, Any]:
    """All that a stage leaves but the first iteration's samples, without what depends on the
    clock.
    """
    stage = folder / "only"
    summary = read_record(stage)["summary"]
    samples = [*stage.glob("rollouts/*[!1].jsonl"), *stage.glob("gold/*.jsonl")]
    return {
        "metrics": untimed(stage / "metrics.jsonl"),
        "summary": {name: value for name, value in summary.items() if "seconds" not in name},
        "samples": {path.relative_to(stage): path.read_bytes() for path in samples},
        "weights": weights(stage / "adapter"),
    }
