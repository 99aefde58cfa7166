"""Recipes that several processes run, their data, and what they leave behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from alignkit import cli
from alignkit.data.group import read_groups, responses_of
from alignkit.io.results import read_record
from tests import rows
from tests.house_run import LORA
from tests.sampled import assert_same_tokens, noting

SAID = "bread milk house river cloud stone green table people friend today"
LOSS = 1e-5  # absolute and relative, of metrics, which have six digits
WEIGHTS = 1e-5  # absolute, of weights
PADDING = 1.01  # what parts of weights are filled up by, whose rows cannot be shared out evenly
SCORES = """
import os, signal
from pathlib import Path

CALLS = []

def fault():
    what, _, rank = os.environ.get("FAULT", "").partition("-")
    CALLS.append(what)
    if rank != os.environ.get("RANK") or len(CALLS) < 3 or Path("happened").exists():
        return
    if what == "raises":
        raise KeyError("no such word")
    if what == "SIGTERM":
        Path("happened").touch()
    os.kill(os.getpid(), signal.Signals[what])

def letters(completions):
    fault()
    return [sum(c.encode()) % 101 / 50 - 1 for c in completions]

def safe(completions):
    return [sum(c.encode()) % 7 / 7 for c in completions]

def some(completions):
    return [None if sum(c.encode()) % 5 == 0 else len(c) % 7 / 7 for c in completions]
"""
# Wrong sums of gradients show, and AdamW makes no whole step of a gradient that is all rounding.
STEPS = yaml.safe_load("{batch_size: 4, optimizer: {adamw: {eps: 1e-4}}}")
OFFLINE = STEPS | {"epochs": 1}
ONLINE = STEPS | yaml.safe_load("""
prompts: prompts.jsonl
reward: {python: {path: scores.py, function: letters}}
rollout: {samples_per_prompt: 3, max_new_tokens: 6}
iterations: 3
prompts_per_iteration: 5
""")
# Where the policy is the reference, every margin is rounding, and the accuracy asks for its sign.
STAGES = """
sft: {algorithm: sft, data: demos.jsonl, epochs: 2, validation: demos.jsonl}
rm: {algorithm: reward_model, data: pairs.jsonl, validation: pairs.jsonl}
dpo: {algorithm: dpo, data: pairs.jsonl, from: sft, reference: base}
kto: {algorithm: kto, data: labels.jsonl}
ppo:
  algorithm: {ppo: {kl_target: 0.01, kl_horizon: 100, whiten_rewards: true}}
  reward: {llama2: {helpful: rm, safety: {python: {path: scores.py, function: safe}}}}
grpo:
  algorithm: grpo
  rollout: {samples_per_prompt: 3, max_new_tokens: 6, filters: [spread]}
  reward: {python: {path: scores.py, function: some}}
best: {algorithm: {rejection_sampling: {replay_ratio: 1.0}}}
"""
SFT = "sft: {algorithm: sft, data: demos.jsonl}"
RLOO = "align: {algorithm: rloo, checkpoint_every: 1}"


@pytest.fixture
def work(here: Path) -> Path:
    """A current folder with data of every kind, in 13 rows of different lengths."""
    (here / "scores.py").write_text(SCORES, encoding="utf-8")
    files: dict[str, list[Any]] = {"prompts": [], "demos": [], "pairs": [], "labels": []}
    for n in range(13):
        asked, answer = {"prompt": f"say {_said(n, 1 + n % 5)}"}, _said(n + 1, 1 + 3 * (n % 4))
        written = {**asked, "completion": answer}
        files["prompts"].append(asked)
        files["demos"].append(written)
        files["pairs"].append({**asked, "chosen": answer, "rejected": _said(n + 5, 2)})
        files["labels"].append({**written, "label": n % 2 == 0})
    for name, found in files.items():
        rows.write_rows(here / f"{name}.jsonl", found)
    return here


def _said(number: int, count: int) -> str:
    places = (number * 3 + place * (1 + number % 4) for place in range(count))
    words = SAID.split()
    return " ".join(words[place % len(words)] for place in places)


def write_recipe(stages: str, model: str = "", **more: Any) -> Path:
    """Write recipe.yaml. stages: as YAML, without what most of them have. model: more of its keys;
    more: of every stage that learns.
    """
    found = yaml.safe_load(stages)
    for name, stage in found.items():
        if "algorithm" in stage:
            found[name] = (OFFLINE if "data" in stage else ONLINE) | stage | more
    keys = rows.TINY | {"lora": LORA} | yaml.safe_load(f"{{{model}}}")
    return rows.write_recipe(Path(), found, keys)


def assert_same_as_one(recipe: Path, out: str, *words: str) -> None:
    """A run of several processes has left what one process does, up to rounding errors, and has
    made the same choices: metrics, best epochs, and the weights of all results.

    After a token that rounding decided otherwise, its stage and later ones are not compared.
    """
    with noting():
        assert cli.main(["run", str(recipe), *words, "--out", "one"]) == 0
    found, expected = Path(out), Path("one")
    stages = list(yaml.safe_load(recipe.read_text(encoding="utf-8"))["stages"])
    for place, stage in enumerate(stages):
        if _differs(found / stage, expected / stage):
            stages = stages[:place]
            break
    for stage in stages:
        if not (expected / stage / "metrics.jsonl").exists():
            continue
        ours, theirs = (rows.untimed(run / stage / "metrics.jsonl") for run in (found, expected))
        for row, other in zip(ours, theirs, strict=True):
            assert row.keys() == other.keys()
            for name, value in other.items():
                near = value if isinstance(value, str) else pytest.approx(value, abs=LOSS, rel=LOSS)
                assert row[name] == near, f"{stage}: {name}"
        first, second = (read_record(run / stage)["summary"] for run in (found, expected))
        assert first.get("best_epoch") == second.get("best_epoch")
        losses = sorted(row["validation/loss"] for row in theirs if "validation/loss" in row)
        assert len(losses) < 2 or losses[1] - losses[0] > 10 * LOSS, "rounding chooses an epoch"
    files, others = (
        {file.relative_to(run) for file in run.glob("*/*/*.safetensors")}
        for run in (expected, found)
    )
    assert files and files == others
    for file in (each for each in files if each.parts[0] in stages):
        ours, theirs = load_file(found / file), load_file(expected / file)
        torch.testing.assert_close(ours, theirs, atol=WEIGHTS, rtol=0)
        for config in (expected / file.parent).glob("*.json"):
            same = found / file.parent / config.name
            assert config.read_bytes() == same.read_bytes(), same


def _differs(found: Path, expected: Path) -> bool:
    """Whether rounding decided a token of a stage's samples otherwise."""
    for file in sorted((expected / "rollouts").glob("*.jsonl")):
        ours, theirs = (
            responses_of(read_groups(rollouts))
            for rollouts in (found / "rollouts" / file.name, file)
        )
        starts = assert_same_tokens(ours, theirs)
        if starts != [len(response.tokens or ()) for response in theirs]:
            return True
    return False
