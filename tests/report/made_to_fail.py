"""Runs of a tiny model in which a cause of trouble is planted, or none."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import yaml

import alignkit
from tests.rows import write_rows

# What each stage is without a cause; `start` is for those that begin elsewhere than with the base
STAGES = """
start:
  algorithm: sft
  data: others.jsonl
  learning_rate: 2e-2
  epochs: 4
  batch_size: 8
sft:
  algorithm: sft
  data: counts.jsonl
  validation: later_counts.jsonl
  learning_rate: 1e-2
  epochs: 3
  batch_size: 8
online:
  algorithm: grpo
  prompts: questions.jsonl
  reward: {python: {path: FILE, function: late}}
  rollout: {samples_per_prompt: 4, max_new_tokens: 12, stop: [o, n]}
  iterations: 10
  prompts_per_iteration: 10
  batch_size: 10
  learning_rate: 1e-2
dpo:
  algorithm: dpo
  data: pairs.jsonl
  validation: later_pairs.jsonl
  learning_rate: 1e-3
  epochs: 2
  batch_size: 8
judge:
  algorithm: reward_model
  data: pairs.jsonl
  validation: later_pairs.jsonl
  learning_rate: 3e-3
  epochs: 2
  batch_size: 8
"""


def late(completions: list[str], **columns: Any) -> list[float]:
    """The share of letters that are late in the alphabet."""
    return [
        sum("p" <= letter <= "z" for letter in text) / max(4, len(text)) for text in completions
    ]


def letters(completions: list[str], **columns: Any) -> list[float]:
    """How many letters, which pays for length."""
    return [sum(letter.isalpha() for letter in text) / 20 for text in completions]


def opposed(completions: list[str], kind: list[str], **columns: Any) -> list[float]:
    """Late letters pay for one kind of prompt, and cost a little for the other."""
    shares = late(completions)
    return [
        -0.5 * share if one == "down" else share for share, one in zip(shares, kind, strict=True)
    ]


def never(completions: list[str], **columns: Any) -> list[float]:
    """Whether they solve what no tiny model can."""
    return [float("forty-two" in text) for text in completions]


def made(stage: str, changes: str, folder: Path) -> Path:
    """The run of a stage. changes: `KEY=VALUE`, of that stage but for `model.` and `seed`, and for
    `data`, which says what is done to its data.
    """
    recipe: dict[str, Any] = {"name": "planted", "stages": {}}
    recipe["model"] = {"base": "tiny", "dtype": "float32", "lora": {"r": 4, "lora_alpha": 8}}
    stages = yaml.safe_load(STAGES.replace("FILE", __file__))
    for name in ("start", stage):
        if name == stage or "from=start" in changes:
            recipe["stages"][name] = stages[name]
    overrides, data = dict[str, Any](), ""
    for change in changes.split():
        key, _, value = change.partition("=")
        if key == "data":
            data = value
        elif key.partition(".")[0] in ("model", "seed"):
            overrides[key] = yaml.safe_load(value)
        else:
            overrides[f"stages.{stage}.{key}"] = yaml.safe_load(value.replace(":", ": "))
    _write_data(folder, data)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    with contextlib.suppress(alignkit.RunFailed):  # some causes leave nothing to learn from
        alignkit.run(folder / "recipe.yaml", overrides, folder / "run")
    return folder / "run"


def _write_data(folder: Path, changed: str) -> None:
    """changed: `few`, or labels that are `flipped` or at `random`."""
    rng = random.Random(3)
    counts, pairs, questions = list[Any](), list[Any](), list[Any]()
    for kind, step in (("up", 1), ("down", -1)):
        for first in range(3, 8):
            for word in ("count", "go", "say", "list", "tell me", "read", "write"):
                prompt = f"{word} {kind} from {first}"
                questions.append({"prompt": prompt, "kind": kind})
                right = " ".join(str(first + step * place) for place in range(3))
                wrong = " ".join(rng.choice("abcxyz") for _ in range(3))
                counts.append({"prompt": prompt, "completion": right})
                pairs.append({"prompt": prompt, "chosen": right, "rejected": wrong})
    rng.shuffle(counts)
    rng.shuffle(pairs)
    learned = pairs[:50]
    for place, row in enumerate(learned):
        if changed == "flipped" or (changed == "random" and place % 2):
            learned[place] = {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
    shown = counts[:50]
    if changed == "few":
        shown, learned = shown[:6], learned[:6]
    others = [{**row, "completion": "no no yes no"} for row in shown]
    write_rows(folder / "others.jsonl", others)
    write_rows(folder / "counts.jsonl", shown)
    write_rows(folder / "later_counts.jsonl", counts[50:])
    write_rows(folder / "pairs.jsonl", learned)
    write_rows(folder / "later_pairs.jsonl", pairs[50:])
    write_rows(folder / "questions.jsonl", questions)
