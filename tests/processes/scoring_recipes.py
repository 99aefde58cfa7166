"""Recipes whose steps have rows that other processes may carry out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from alignkit import Group
from alignkit.data.group import write_groups

CODE = """def reward(completions):
    if any("forbidden" in text for text in completions):
        raise ValueError("forbidden")
    return [None if len(text) % 11 == 0 else float(sum(map(ord, text)) % 97) / 7 for text in completions]
"""
PYTHON = {"python": {"path": "reward.py", "function": "reward"}}


def user(text: str) -> tuple[Any, ...]:
    return ({"role": "user", "content": text},)


def write_recipe(folder: Path, count: int, stages: dict[str, Any]) -> Path:
    """A recipe on `count` prompts of different lengths."""
    texts = [f"bread {n} is {'good ' * (n % 7)}".strip() for n in range(count)]
    write_groups(folder / "prompts.jsonl", [Group(user(text)) for text in texts])
    (folder / "reward.py").write_text(CODE, encoding="utf-8")
    plain = {"model": {"base": "tiny", "dtype": "float32", "lora": {"r": 2}}, "stages": stages}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
    return folder / "recipe.yaml"


def sample(**keys: Any) -> dict[str, Any]:
    plain = {
        "step": "sample",
        "prompts": "prompts.jsonl",
        "samples_per_prompt": 2,
        "sampling": {"max_new_tokens": 5},
    }
    return {**plain, "reward": PYTHON, **keys}


def results(run: Path, stage: str) -> tuple[bytes, Any]:
    """What a step made: its data, and its summary."""
    record = json.loads((run / stage / "stage.json").read_text(encoding="utf-8"))
    return (run / stage / "data.jsonl").read_bytes(), record["summary"]
