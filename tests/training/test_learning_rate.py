"""The default learning rate follows the model; a written one does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from watched import prompts

from alignkit.data.group import write_groups
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import run_recipe
from alignkit.training.learner import scaled
from alignkit_plugins.algorithms.dpo import DPO
from alignkit_plugins.algorithms.ppo import PPO


@pytest.mark.parametrize(
    ("rate", "hidden_size", "lora", "wanted"),
    [
        (1e-3, 576, True, 1e-3),
        (1e-3, 64, True, 1e-3),  # narrower than what was measured
        (1e-3, 2048, True, 2.8e-4),
        (1e-3, 576, False, 1e-4),
        (1e-3, 4096, False, 1.4e-5),
    ],
)
def test_a_default_falls_with_the_width_and_is_a_tenth_for_all_weights(
    rate: float, hidden_size: int, lora: bool, wanted: float
) -> None:
    assert scaled(rate, hidden_size, lora) == wanted


def test_defaults_of_eight_billion_weights_are_near_published_ones() -> None:
    """Within a factor of three: DPO of all weights 5e-7 (Zephyr, Tulu 3), with LoRA 5e-6
    (zephyr-7b-dpo-qlora).
    """
    rate = DPO.defaults.learning_rate
    assert rate is not None
    for lora, published in ((False, 5e-7), (True, 5e-6)):
        assert 1 / 3 < scaled(rate, 4096, lora) / published < 3


def run(
    folder: Path, lora: Any, *, stage: dict[str, Any] | None = None
) -> tuple[dict[str, Any], float]:
    """A stage's summary and the learning rate of its first step."""
    folder.mkdir()
    write_groups(folder / "prompts.jsonl", prompts(2))
    align = {
        "algorithm": "ppo",
        "prompts": "prompts.jsonl",
        "reward": {"length": {"unit": "characters"}},
        "rollout": {"max_new_tokens": 4},
        "iterations": 1,
        "prompts_per_iteration": 2,
        **(stage or {}),
    }
    recipe = {
        "model": {"base": "tiny", "dtype": "float32", "lora": lora},
        "stages": {"align": align},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    run_recipe(load_recipe(folder / "recipe.yaml"), folder / "run")
    stage_file = json.loads((folder / "run" / "align" / "stage.json").read_text(encoding="utf-8"))
    row = json.loads(
        (folder / "run" / "align" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0]
    )
    return stage_file["summary"], row["learning_rate"]


def test_a_stage_uses_and_records_the_default_for_its_model(tmp_path: Path) -> None:
    """The tiny model is 64 wide."""
    default = PPO.defaults.learning_rate
    assert default is not None
    for number, (lora, rate) in enumerate((({"r": 4}, default), ("none", default / 10))):
        summary, used = run(tmp_path / str(number), lora)
        assert summary["learning_rate"] == used == pytest.approx(rate)


def test_a_written_rate_is_used_as_it_is(tmp_path: Path) -> None:
    summary, used = run(tmp_path / "written", "none", stage={"learning_rate": 3e-4})
    assert summary["learning_rate"] == used == 3e-4
