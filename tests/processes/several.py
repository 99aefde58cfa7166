"""Recipes that several processes run, their data, and what they leave behind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

WORDS = (
    "bread",
    "milk",
    "house",
    "river",
    "cloud",
    "stone",
    "green",
    "table",
    "people",
    "friend",
    "today",
)
SPEED = ("seconds", "tokens_per_second", "time")  # metrics that differ from run to run
LOSS = 1e-5  # absolute and relative, of metrics, which have six digits
WEIGHTS = 1e-5  # absolute, of weights
# Wrong sums of gradients show, and AdamW makes no whole step of a gradient that is all rounding.
ADAMW = {"optimizer": {"adamw": {"eps": 1e-4}}}
PADDING = 1.01  # what parts of weights are filled up by, whose rows cannot be shared out evenly
SCORES = """
import os, signal
from pathlib import Path

CALLS = []

def fault():
    what = os.environ.get("FAULT")
    CALLS.append(what)
    if not what or len(CALLS) < 3 or Path("happened").exists():
        return
    if what == "raises":
        raise KeyError("no such word")
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "SIGTERM":
        Path("happened").touch()
        os.kill(os.getpid(), signal.SIGTERM)

def letters(completions):
    fault()
    return [sum(c.encode()) % 101 / 50 - 1 for c in completions]

def safe(completions):
    return [sum(c.encode()) % 7 / 7 for c in completions]

def some(completions):
    return [None if sum(c.encode()) % 5 == 0 else len(c) % 7 / 7 for c in completions]
"""


def said(number: int, count: int) -> str:
    return " ".join(
        WORDS[(number * 3 + place * (1 + number % 4)) % len(WORDS)] for place in range(count)
    )


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with data of every kind, in rows of different lengths."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scores.py").write_text(SCORES, encoding="utf-8")
    prompts = [{"prompt": f"say {said(n, 1 + n % 5)}"} for n in range(13)]
    answers = [said(n + 1, 1 + 3 * (n % 4)) for n in range(13)]
    _write("prompts.jsonl", prompts)
    _write("demos.jsonl", [{**p, "completion": a} for p, a in zip(prompts, answers, strict=True)])
    pairs = [
        {**p, "chosen": a, "rejected": said(n + 5, 2)}
        for n, (p, a) in enumerate(zip(prompts, answers, strict=True))
    ]
    _write("pairs.jsonl", pairs)
    labels = [
        {**p, "completion": a, "label": n % 2 == 0}
        for n, (p, a) in enumerate(zip(prompts, answers, strict=True))
    ]
    _write("labels.jsonl", labels)
    return tmp_path


def _write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def reward(function: str) -> dict[str, Any]:
    return {"python": {"path": "scores.py", "function": function}}


def online(algorithm: Any, **keys: Any) -> dict[str, Any]:
    return {
        "algorithm": algorithm,
        "prompts": {"path": "prompts.jsonl"},
        "reward": reward("letters"),
        "rollout": {"samples_per_prompt": 3, "max_new_tokens": 6},
        "iterations": 3,
        "prompts_per_iteration": 5,
        "batch_size": 4,
        **ADAMW,
        **keys,
    }


def offline(algorithm: Any, data: str, **keys: Any) -> dict[str, Any]:
    return {
        "algorithm": algorithm,
        "data": {"path": f"{data}.jsonl"},
        "batch_size": 4,
        "epochs": 1,
        **ADAMW,
        **keys,
    }


LLAMA2 = {"llama2": {"helpful": "rm", "safety": reward("safe")}}
# Where the policy is the reference, every margin is rounding, and the accuracy asks for its sign.
MOVED = {"from": "sft", "reference": "base"}
STAGES = {
    "sft": offline("sft", "demos", epochs=2, validation={"path": "demos.jsonl"}),
    "rm": offline("reward_model", "pairs", validation={"path": "pairs.jsonl"}),
    "dpo": offline("dpo", "pairs", **MOVED),
    "kto": offline("kto", "labels"),
    "ppo": online({"ppo": {"kl_target": 0.01, "kl_horizon": 100}}, reward=LLAMA2),
    "grpo": online({"grpo": {"dynamic_sampling": True}}, reward=reward("some")),
    "best": online({"rejection_sampling": {"replay_ratio": 1.0}}),
}


MIX = {"data": {"path": "demos.jsonl"}, "objective": "sft", "weight": 0.3, "batch_size": 3}


def answers(policy: str) -> dict[str, Any]:
    """A step that process 0 runs alone."""
    prompts = {"path": "prompts.jsonl"}
    return {
        "step": "sample",
        "policy": policy,
        "prompts": prompts,
        "samples_per_prompt": 1,
        "sampling": {"max_new_tokens": 4},
    }


def write_recipe(stages: Mapping[str, Any], **keys: Any) -> Path:
    model = {"base": "tiny", "dtype": "float32", "lora": {"r": 4, "lora_alpha": 8}}
    path = Path("recipe.yaml")
    content = json.loads(json.dumps({"model": model, **keys, "stages": stages}))
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("*/metrics.jsonl"))
    lines = "".join(file.read_text(encoding="utf-8") for file in files).splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(SPEED)} for line in lines
    ]


def assert_alike(found: Path, expected: Path) -> None:
    """The same metrics and the same weights in every stage, up to rounding errors, and the same
    choices.
    """
    for row, other in zip(metrics_of(found), metrics_of(expected), strict=True):
        assert row.keys() == other.keys()
        for name, value in other.items():
            near = value if isinstance(value, str) else pytest.approx(value, abs=LOSS, rel=LOSS)
            assert row[name] == near, f"{row['stage']}, step {row.get('step')}: {name}"
    adapters = sorted(expected.glob("*/adapter"))
    assert adapters
    for adapter in adapters:
        stage = adapter.parent.name
        ours = load_file(found / stage / "adapter" / "adapter_model.safetensors")
        theirs = load_file(adapter / "adapter_model.safetensors")
        assert ours.keys() == theirs.keys()
        for name, weight in theirs.items():
            assert (ours[name] - weight).abs().max() <= WEIGHTS, f"{stage}: {name}"
        summary = [
            json.loads((folder / stage / "stage.json").read_text())["summary"]
            for folder in (found, expected)
        ]
        assert summary[0].get("best_epoch") == summary[1].get("best_epoch")
