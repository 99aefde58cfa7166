"""The level of a reward does not matter: every on-policy algorithm with its defaults, a reward of 5 less and 5 more.

The model answers a few letters and then ends, so a policy that learns the level writes longer or shorter answers.
`python -m benchmarks.levels` shows the same at full length, with the installed recipes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from alignkit.data.group import Group, read_groups, write_groups
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import run_recipe
from benchmarks.levels import on_policy, overrides
from tests.net.test_optimum import make

# One sample per prompt leaves no group to compare with.
EVERY = [(name, None) for name in on_policy()] + [("ppo", 1), ("reinforce_pp", 1)]
# `make slow` has the others.
LEVELS = [case if case == ("ppo", None) else pytest.param(*case, marks=pytest.mark.slow) for case in EVERY]


pytestmark = pytest.mark.usefixtures("one_thread")


Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Result:
    """What a stage wrote in every iteration, and the weights it ended with."""

    texts: list[str]
    tokens: list[float]
    weights: Weights


def ending_model(folder: Path) -> Path:
    """A model that writes letters and ends after any of them, four on average."""
    from transformers import AutoModelForCausalLM

    base = make(folder, "abcd", 3).base
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight[1] = 0.0
        model.lm_head.bias[1] = 0.3  # the end of turn
    model.save_pretrained(base)
    return base


def write_recipe(folder: Path) -> Path:
    ending_model(folder)
    prompts = [Group(({"role": "user", "content": str(index)},), id=str(index)) for index in range(40)]
    write_groups(folder / "prompts.jsonl", prompts)
    code = "def reward(completions):\n    return [float('a' in text) for text in completions]\n"
    (folder / "reward.py").write_text(code, encoding="utf-8")
    align = {
        "algorithm": "ppo",
        "from": "base",
        "prompts": "prompts.jsonl",
        "reward": {"python": {"path": "reward.py", "function": "reward"}},
        "rollout": {"max_new_tokens": 10, "missing_eos_penalty": 0.5},
        "iterations": 4,
        "prompts_per_iteration": 24,
        "batch_size": 8,
        "learning_rate": 5e-3,
        "checkpoint_every": 100,
    }
    model = {"base": str(folder / "base"), "dtype": "float32", "lora": "none"}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "levels", "model": model, "stages": {"align": align}}), encoding="utf-8")
    return path


def align(recipe: Path, algorithm: str, samples: int | None, shift: float) -> Result:
    out = recipe.parent / "runs" / f"{shift:g}"
    extra = [] if samples is None else [f"stages.align.rollout.samples_per_prompt={samples}"]
    run_recipe(load_recipe(recipe, [*overrides(recipe, algorithm, shift), *extra]), out)
    rollouts = [group for path in sorted((out / "align" / "rollouts").glob("*.jsonl")) for group in read_groups(path)]
    rows = [json.loads(line) for line in (out / "align" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [response.text for group in rollouts for response in group.responses]
    (weights,) = (out / "align" / "adapter").glob("*.safetensors")
    return Result(texts, [row["response_tokens"] for row in rows], load_file(weights))


def distance(a: Weights, b: Weights) -> float:
    """The root mean square difference of a weight. Adam moves single weights by rounding errors alone."""
    return float(torch.cat([(a[name] - b[name]).flatten() for name in a]).square().mean().sqrt())


@pytest.mark.parametrize(("algorithm", "samples"), LEVELS, ids=lambda value: str(value))
def test_a_constant_changes_nothing(tmp_path: Path, algorithm: str, samples: int | None) -> None:
    recipe = write_recipe(tmp_path)
    less, more = (align(recipe, algorithm, samples, shift) for shift in (-5.0, 5.0))
    moved = distance(less.weights, load_file(tmp_path / "base" / "model.safetensors"))
    assert moved > 1e-3  # something was learned
    same = [a == b for a, b in zip(less.texts, more.texts, strict=True)]
    assert sum(same) / len(same) > 0.98  # a rounding error may move a draw
    assert less.tokens == pytest.approx(more.tokens, abs=0.1)
    assert distance(less.weights, more.weights) < 0.05 * moved


def test_the_defaults_before_would_have_shown(tmp_path: Path) -> None:
    """The test can fail: uncentered scores with lambda below 1 learn the level."""
    recipe = write_recipe(tmp_path)
    old = "{ppo: {lam: 0.95, group_baseline: false, center_scores: false}}"
    found = {shift: align(recipe, old, None, shift) for shift in (-5.0, 5.0)}
    assert found[5.0].texts != found[-5.0].texts
    assert found[-5.0].tokens[-1] > found[5.0].tokens[-1] + 1
