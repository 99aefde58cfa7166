"""A small run with every kind of stage, and what its folder must hold at the end."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import yaml

from tests.rows import WORDS, demos, pairs, prompts, write_recipe, write_rows

# Whose bytes must be those of a whole run
RESULTS = ("adapter_model.safetensors", "data.jsonl", "samples.jsonl")

STAGES: dict[str, Any] = yaml.safe_load("""
sft: {algorithm: sft, data: demos.jsonl, batch_size: 2, epochs: 2, keep_versions: true}
helpful: {algorithm: reward_model, from: sft, data: pairs.jsonl, batch_size: 2, epochs: 1}
labels: {step: judge_pairs, judge: {reward_judge: {reward_model: helpful}}, data: pairs.jsonl}
best: {algorithm: dpo, from: sft, data: labels, batch_size: 2, epochs: 1}
align:
  algorithm: rejection_sampling
  from: best
  reward: helpful
  prompts: prompts.jsonl
  rollout: {samples_per_prompt: 2, max_new_tokens: 4}
  iterations: 2
  prompts_per_iteration: 2
  batch_size: 2
report:
  step: evaluate
  policies: [sft, align]
  rewards: [helpful]
  prompts: prompts.jsonl
  sampling: {max_new_tokens: 4}
""")


def write(folder: Path) -> Path:
    """The recipe with its data."""
    rows = random.Random(0)
    texts = [" ".join(rows.choices(" ".join(WORDS).split(), k=4)) for _ in range(4)]
    rejected = "the house"
    write_rows(folder / "demos.jsonl", demos(texts))
    write_rows(folder / "pairs.jsonl", pairs(texts, "my friend is in this house", rejected))
    write_rows(folder / "prompts.jsonl", prompts(texts))
    model = {"base": "tiny", "lora": {"r": 2, "lora_alpha": 4}}
    return write_recipe(folder, STAGES, model, name="faults")


def results(folder: Path) -> dict[str, str]:
    """Digests of what a run is for, by name, without what was set aside."""
    found = {}
    for name in STAGES:
        stage = (folder / name).resolve()
        for file in sorted(stage.rglob("*")):
            if file.name in RESULTS and "checkpoints" not in file.relative_to(stage).parts:
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                found[f"{name}/{file.relative_to(stage).as_posix()}"] = digest
    return found
