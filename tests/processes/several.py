"""Recipes that several processes run, their data, and what they leave behind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from alignkit import cli
from tests import rows
from tests.processes.forked import run_together

WORDS = "bread milk house river cloud stone green table people friend today".split()  # noqa: SIM905
SPEED = ("seconds", "tokens_per_second", "time")  # metrics that differ from run to run
LOSS = 1e-5  # absolute and relative, of metrics, which have six digits
WEIGHTS = 1e-5  # absolute, of weights
# Wrong sums of gradients show, and AdamW makes no whole step of a gradient that is all rounding.
ADAMW = {"optimizer": {"adamw": {"eps": 1e-4}}}
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
    places = [number * 3 + place * (1 + number % 4) for place in range(count)]
    return " ".join(WORDS[place % len(WORDS)] for place in places)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with data of every kind, in 13 rows of different lengths."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scores.py").write_text(SCORES, encoding="utf-8")
    every: dict[str, list[Any]] = {"prompts": [], "demos": [], "pairs": [], "labels": []}
    for n in range(13):
        prompt = {"prompt": f"say {said(n, 1 + n % 5)}"}
        answer = said(n + 1, 1 + 3 * (n % 4))
        every["prompts"].append(prompt)
        every["demos"].append({**prompt, "completion": answer})
        every["pairs"].append({**prompt, "chosen": answer, "rejected": said(n + 5, 2)})
        every["labels"].append({**prompt, "completion": answer, "label": n % 2 == 0})
    for name, content in every.items():
        rows.write_rows(tmp_path / f"{name}.jsonl", content)
    return tmp_path


def reward(function: str) -> dict[str, Any]:
    return {"python": {"path": "scores.py", "function": function}}


def online(algorithm: Any, **keys: Any) -> dict[str, Any]:
    return {
        "algorithm": algorithm,
        "prompts": {"path": "prompts.jsonl"},
        "reward": reward("letters"),
        "rollout": {"samples_per_prompt": 3, "max_new_tokens": 6},
        "iterations": 2,
        "prompts_per_iteration": 5,
        "batch_size": 4,
        **ADAMW,
        **keys,
    }


def offline(algorithm: Any, data: str, **keys: Any) -> dict[str, Any]:
    plain = {"algorithm": algorithm, "data": {"path": f"{data}.jsonl"}}
    return {**plain, "batch_size": 4, "epochs": 1, **ADAMW, **keys}


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
GOLD = [{"gold": {"reward": reward("safe")}}]


def answers(policy: str) -> dict[str, Any]:
    """A step that process 0 runs alone."""
    step = {"step": "sample", "policy": policy, "prompts": {"path": "prompts.jsonl"}}
    return {**step, "samples_per_prompt": 1, "sampling": {"max_new_tokens": 4}}


def write_recipe(stages: Mapping[str, Any], model: Any = None, **top: Any) -> Path:
    plain = json.loads(json.dumps(stages))  # YAML would name what several stages share
    return rows.write_recipe(Path(), plain, model, **top)


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    found = []
    for file in sorted(folder.glob("*/metrics.jsonl")):
        for row in rows.read_rows(file):
            found.append({key: value for key, value in row.items() if not key.startswith(SPEED)})
    return found


def weights_of(folder: Path, stage: str) -> Path:
    """The folder of the adapter or model that a stage has trained."""
    (file,) = (folder / stage).glob("*/*model.safetensors")
    return file.parent


def assert_alike(found: Path, expected: Path) -> None:
    """The same metrics, files and weights in every stage, up to rounding errors, and the same
    choices.
    """
    for row, other in zip(metrics_of(found), metrics_of(expected), strict=True):
        assert row.keys() == other.keys()
        for name, value in other.items():
            near = value if isinstance(value, str) else pytest.approx(value, abs=LOSS, rel=LOSS)
            assert row[name] == near, f"{row['stage']}, step {row.get('step')}: {name}"
    stages = sorted({row["stage"] for row in metrics_of(expected)})
    assert stages
    for stage in stages:
        ours, theirs = weights_of(found, stage), weights_of(expected, stage)
        assert {file.name for file in ours.iterdir()} == {file.name for file in theirs.iterdir()}
        (file,) = theirs.glob("*model.safetensors")
        weights = load_file(ours / file.name)
        for name, weight in load_file(file).items():
            assert (weights.pop(name) - weight).abs().max() <= WEIGHTS, f"{stage}: {name}"
        assert not weights
        records = [folder / stage / "stage.json" for folder in (found, expected)]
        epochs = [json.loads(file.read_text())["summary"].get("best_epoch") for file in records]
        assert epochs[0] == epochs[1]


def assert_same(work: Path, recipe: Path, processes: int, sharded: bool, *words: str) -> None:
    """Several processes learn what one does."""
    assert cli.main(["run", str(recipe), *words, "--out", "one"]) == 0
    run_together(work, recipe, "several", *words, processes=processes, sharded=sharded)
    assert_alike(Path("several"), Path("one"))
