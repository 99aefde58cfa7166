"""A small run with every kind of stage, and what its folder must hold at the end."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

# Whose bytes must be those of a whole run
RESULTS = ("adapter_model.safetensors", "data.jsonl", "samples.jsonl")

ONLINE = {
    "prompts": "prompts.jsonl",
    "rollout": {"samples_per_prompt": 2, "max_new_tokens": 4},
    "iterations": 2,
    "prompts_per_iteration": 2,
    "batch_size": 2,
}
STAGES: dict[str, Any] = {
    "sft": {
        "algorithm": "sft",
        "data": "demos.jsonl",
        "batch_size": 2,
        "epochs": 2,
        "keep_versions": True,
    },
    "helpful": {
        "algorithm": "reward_model",
        "from": "sft",
        "data": "pairs.jsonl",
        "batch_size": 2,
        "epochs": 1,
    },
    "labels": {
        "step": "judge_pairs",
        "judge": {"reward_judge": {"reward_model": "helpful"}},
        "data": "pairs.jsonl",
    },
    "best": {"algorithm": "dpo", "from": "sft", "data": "labels", "batch_size": 2, "epochs": 1},
    "align": {"algorithm": "rejection_sampling", "from": "best", "reward": "helpful", **ONLINE},
    "report": {
        "step": "evaluate",
        "policies": ["sft", "align"],
        "rewards": ["helpful"],
        "prompts": "prompts.jsonl",
        "sampling": {"max_new_tokens": 4},
        "show": 0,
    },
}
WORDS = ("the old man and his friend baked some good bread in a small house near the sea").split()  # noqa: SIM905


def write_recipe(folder: Path) -> Path:
    """The recipe with its data."""
    random_words = random.Random(0)

    def text(count: int) -> str:
        return " ".join(random_words.choices(WORDS, k=count))

    rows = {
        "demos.jsonl": [{"prompt": text(4), "completion": text(5)} for _ in range(4)],
        "pairs.jsonl": [
            {"prompt": text(4), "chosen": text(6), "rejected": text(3)} for _ in range(4)
        ],
        "prompts.jsonl": [{"prompt": text(5)} for _ in range(4)],
    }
    for name, values in rows.items():
        (folder / name).write_text(
            "".join(json.dumps(row) + "\n" for row in values), encoding="utf-8"
        )
    recipe = {
        "name": "faults",
        "model": {"base": "tiny", "lora": {"r": 2, "lora_alpha": 4}},
        "stages": STAGES,
    }
    (folder / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    return folder / "recipe.json"


def results(folder: Path) -> dict[str, str]:
    """Digests of what a run is for, by name, without what was set aside."""
    found = {}
    for stage in (folder / name for name in STAGES):
        for file in sorted(stage.resolve().rglob("*")):
            name = file.relative_to(stage.resolve())
            if file.name in RESULTS and "checkpoints" not in name.parts:
                found[f"{stage.name}/{name.as_posix()}"] = hashlib.sha256(
                    file.read_bytes()
                ).hexdigest()
    return found
