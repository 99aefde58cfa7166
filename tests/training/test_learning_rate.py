"""The default learning rate follows the model; a written one does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from alignkit.io.results import read_record
from alignkit.training.learner import scaled
from alignkit_plugins.algorithms.ppo import PPO
from tests.rows import TINY, read_rows, run, write_recipe

# The width of a model, whether it has an adapter, and what becomes of a rate of 0.001
RATES = yaml.safe_load("""
- [576, true, 0.001]
- [64, true, 0.001]  # narrower than what was measured
- [2048, true, 0.00028]
- [4096, false, 0.000014]
""")


@pytest.mark.parametrize(("hidden_size", "lora", "wanted"), RATES)
def test_a_default_falls_with_the_width_and_is_a_tenth_for_all_weights(
    hidden_size: int, lora: bool, wanted: float
) -> None:
    assert scaled(1e-3, hidden_size, lora) == wanted


@pytest.mark.parametrize(
    ("written", "rate"), [({}, PPO.defaults.learning_rate), ({"learning_rate": 3e-4}, 3e-3)]
)
def test_a_stage_of_all_weights_uses_and_records_a_tenth_of_the_default(
    tmp_path: Path, written: dict[str, float], rate: float
) -> None:
    """But a rate that is written as it is. The tiny model is 64 wide."""
    align = """
    algorithm: ppo
    prompts: prompts.jsonl
    reward: {length: {unit: characters}}
    rollout: {max_new_tokens: 4}
    iterations: 1
    prompts_per_iteration: 2
    """
    stages = {"align": yaml.safe_load(align) | written}
    stage = run(write_recipe(tmp_path, stages, {**TINY, "lora": "none"})) / "align"
    (row,) = read_rows(stage / "metrics.jsonl")
    used = read_record(stage)["summary"]["learning_rate"]
    assert used == row["learning_rate"] == pytest.approx(rate / 10)
