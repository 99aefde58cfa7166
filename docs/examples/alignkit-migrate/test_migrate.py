"""Configs of the three tools become recipes that pass `alignkit check`, and no field is lost
without a word.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from alignkit_migrate import converted, migrate

from alignkit.cli import main
from alignkit.errors import RecipeError

ROWS = {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go."}
TRL = {
    "model_name_or_path": "tiny",
    "dataset_name": "rows.jsonl",
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "use_peft": True,
    "lora_r": 4,
    "optim": "adamw_torch",
    "weight_decay": 0.1,
    "beta": 0.2,
    "loss_type": ["ipo"],
    "sync_ref_model": True,
    "hub_token": "hf_abcdefgh12345678",
}
LLAMA = {
    "model_name_or_path": "tiny",
    "stage": "sft",
    "finetuning_type": "full",
    "dataset": "rows.jsonl",
    "cutoff_len": 64,
}
AXOLOTL = {
    "base_model": "tiny",
    "datasets": [{"path": "rows.jsonl"}],
    "rl": "ipo",
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "val_set_size": 0.5,
    "learning_rate": 1e-4,
}


@pytest.mark.parametrize(
    ("values", "trainer"), [(TRL, "dpo"), (AXOLOTL, "")], ids=["trl", "axolotl"]
)
def test_the_recipe_is_valid(
    values: dict[str, Any],
    trainer: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(
        "".join(json.dumps({**ROWS, "prompt": f"{n}?"}) + "\n" for n in range(8)), "utf-8"
    )
    Path("old.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    migrate(Path("old.yaml"), Path("new.yaml"), trainer)
    assert main(["check", "new.yaml"]) == 0
    text = Path("new.yaml").read_text(encoding="utf-8")
    assert "hf_abc" not in text and "next: alignkit check new.yaml" in capsys.readouterr().out
    with pytest.raises(RecipeError, match="already exists"):
        migrate(Path("old.yaml"), Path("new.yaml"), trainer)


def test_fields_of_trl() -> None:
    recipe, notes = converted(TRL, "dpo")
    stage = recipe["stages"]["dpo"]
    assert (
        stage["algorithm"] == {"dpo": {"beta": 0.2, "loss": "ipo_norm"}}
        and stage["batch_size"] == 8
    )
    assert stage["optimizer"] == {"adamw": {"weight_decay": 0.1}} and recipe["model"]["lora"] == {
        "r": 4,
        "lora_alpha": 8,
    }
    assert (stage["epochs"], stage["learning_rate"], stage["lr_scheduler_type"]) == (
        3,
        1e-6,
        "linear",
    )  # TRL's defaults
    assert "no counterpart: sync_ref_model" in notes and "no counterpart: hub_token" in notes


def test_other_tools() -> None:
    recipe, _ = converted(LLAMA)
    assert recipe["model"]["lora"] == "none" and recipe["stages"]["sft"]["max_length"] == 64
    recipe, _ = converted(AXOLOTL)
    assert recipe["stages"]["dpo"]["algorithm"] == {"dpo": {"loss": "ipo_norm"}}
    assert recipe["stages"]["dpo"]["data"] == {"path": "rows.jsonl", "validation": 0.5}


def test_batches_of_grpo_count_samples() -> None:
    recipe, notes = converted(
        {**TRL, "num_generations": 4, "loss_type": "dapo", "reward_funcs": "mine.score"}, "grpo"
    )
    stage = recipe["stages"]["grpo"]
    assert (stage["batch_size"], stage["prompts_per_iteration"], stage["max_length"]) == (
        2,
        2,
        1024 + 512,
    )
    assert stage["reward"] == {"python": {"function": "mine:score"}}
    assert stage["algorithm"]["grpo"]["aggregation"] == "token_mean"
    assert any("write iterations: 3 x rows / 2" in note for note in notes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_name_or_path": "tiny"}, "does not say which trainer"),
        ({"stage": "pt", "finetuning_type": "lora"}, "trainer"),
    ],
)
def test_what_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        converted(values)
