"""Stages that learn from no reward, such as distillation: a recipe need not name one, and one that
it names is only reported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from watched import PYTHON, by, prompts, weights

from alignkit.data.group import Group, responses_of
from tests.rows import Said, read_rows, rollouts_of, run, with_plugin, write_recipe, write_rows

PLUGIN = """
from alignkit import *

class Growing(RewardCombination):
    class Options(Options):
        part: RewardRef
    def parts(self):
        return {"part": self.options.part}
    def combine(self, groups, components):
        factor = self.state["factor"] = self.state.get("factor", 0.0) + 1.0
        return CombinedReward(components["part"], {"factor": factor})

class Distill(Algorithm):
    source = Source.ROLLOUTS

    @property
    def needs(self):
        return Needs(reward=False, reference_logprobs=True, old_logprobs=True, replay=True)

    def select(self, groups, context):
        context.log(replayed=sum(len(groups) for groups in context.replay()))
        return groups

    def signal(self, rollouts):
        return {"gap": rollouts.reference_logprobs - rollouts.old_logprobs + 0.1}

    def loss(self, batch, out):
        return Loss(distillation=per_token(-out.logprobs * batch["gap"]))

class Fixed(Distill):
    needs = Needs(reward=False)

    def loss(self, batch, out):
        return Loss(nll=per_token(-out.logprobs))

class Nothing(Fixed):
    def signal(self, rollouts):
        return Skip("nothing to distill")

@hookimpl
def register(add):
    add("reward", "growing", Growing)
    add("algorithm", "distill", Distill)
    add("algorithm", "fixed", Fixed)
    add("algorithm", "nothing", Nothing)
"""
ALIGN = """
algorithm: distill
prompts: prompts.jsonl
rollout: {samples_per_prompt: 2, max_new_tokens: 5}
iterations: 2
prompts_per_iteration: 2
batch_size: 2
learning_rate: 0.01
"""
# No score for responses of 1, 5, 9 ... characters.
SCORES = """
def reward(completions):
    return [None if len(c) % 4 == 1 else len(c) / 2 for c in completions]

def nothing(completions):
    return [None for c in completions]
"""

pytestmark = pytest.mark.usefixtures("one_thread")


def train(folder: Path, code: int = 0, **stage: Any) -> list[dict[str, Any]]:
    """Run the stage `align`; returns its metrics."""
    folder.mkdir(exist_ok=True)
    (folder / "reward.py").write_text(SCORES, encoding="utf-8")
    write_rows(folder / "prompts.jsonl", prompts(4))
    recipe = write_recipe(folder, {"align": yaml.safe_load(ALIGN) | stage})
    run(recipe, *with_plugin(folder / "plugin.py", PLUGIN), code=code)
    metrics = folder / "run" / "align" / "metrics.jsonl"
    return read_rows(metrics) if metrics.exists() else []


def rollouts(folder: Path) -> list[Group]:
    return [group for groups in rollouts_of(folder / "run" / "align") for group in groups]


def test_a_stage_without_a_reward_samples_and_learns(tmp_path: Path) -> None:
    """It has no numbers of a reward anywhere; samples of earlier iterations are replayed whole."""
    first, second = train(tmp_path)
    assert not [name for name in first | second if "reward" in name or name == "unscored"]
    assert first["grad_norm"] > 0 and first["kl"] == pytest.approx(0, abs=1e-4) != second["kl"]
    assert first["response_tokens"] > 0 and 0 <= first["truncated"] <= 1
    assert [first["replayed"], second["replayed"]] == [0, 2]
    assert [len(group.responses) for group in rollouts(tmp_path)] == [2, 2, 2, 2]
    assert not any(response.scores for group in rollouts(tmp_path) for response in group.responses)


def test_a_reward_is_reported_and_changes_nothing(tmp_path: Path, said: Said) -> None:
    """Responses without a score are learned from like all others, also if none has one; a
    combination that is only reported remembers nothing.
    """
    none = by("nothing")
    rewards = {"without": None, "reported": {"growing": {"part": PYTHON}}, "none": none}
    plain, scored, unscored = (
        train(tmp_path / name, reward=reward) for name, reward in rewards.items()
    )
    adapters = {weights(tmp_path / name / "run" / "align" / "adapter") for name in rewards}
    assert len(adapters) == 1
    assert [row["replayed"] for row in scored] == [row["replayed"] for row in plain]
    responses = responses_of(rollouts(tmp_path / "reported")[:2])
    known = [None if len(r.text) % 4 == 1 else len(r.text) / 2 for r in responses]
    assert [response.scores["reward"] for response in responses] == known
    values = [value for value in known if value is not None]
    assert scored[0]["unscored"] == known.count(None) > 0
    assert scored[0]["reward"] == pytest.approx(sum(values) / len(values))
    assert [row["reward/factor"] for row in scored] == [1.0, 1.0]
    assert not {"reward", "reward_std"} & unscored[0].keys() and unscored[0]["unscored"] == 4
    train(tmp_path / "idle", 1, algorithm="nothing", reward=none)
    assert "Last reason: nothing to distill" in said()


@pytest.mark.parametrize(("algorithm", "asked"), [("fixed", False), ("distill", True)])
def test_a_wrong_option_does_not_make_a_reward_missing(
    tmp_path: Path, algorithm: str, asked: bool, said: Said
) -> None:
    """Needs that depend on options are not known if these are wrong."""
    train(tmp_path, 2, algorithm={algorithm: {"nonsense": 1}})
    shown = said()
    assert "nonsense" in shown and ("stages.align.reward' is missing" in shown) == asked
