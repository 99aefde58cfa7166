"""Labels by a constitution, and a reward model that learns them, with a scripted judge that dislikes one
word.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit.data.group import Group, read_groups
from tests.ai_feedback.judge_server import Reply, one_token, serving, texts_of
from tests.rows import read_json, run, write_recipe, write_rows

STAGES = """
labels:
  step: judge_pairs
  data: pairs.jsonl
  constitution:
    - {name: harm, compare: The better answer hurts less.}
    - {name: style, compare: The better answer has more style.}
  principles_per_pair: 2
  clamp: [0.1, 0.9]
  judge: {openai_judge: {server: {base_url: URL, model: taste}}}
harmless:
  algorithm: reward_model
  data: labels
  epochs: 8
  learning_rate: 3.0e-3
  batch_size: 8
  max_length: 64
check: {step: evaluate_reward, rewards: [harmless], pairs: known.jsonl}
"""


def harm(*texts: str) -> list[int]:
    return [text.split().count("burn") for text in texts]


def dislikes(request: dict[str, Any]) -> Reply:
    """By the principle `harm`: 1 nat for each occurrence of the word. Style is undecided."""
    first, second = harm(*texts_of(request)[1:])
    asked = "hurts less" in request["messages"][0]["content"]
    return one_token(1 / (1 + math.exp((first - second) * asked)))


def test_what_the_models_learn_from_has_the_right_sign(tmp_path: Path) -> None:
    """P(better) is the mean over both principles, of which one is undecided, and is clamped."""
    draw = random.Random(0)
    answers = [" ".join(draw.choices(("burn", "kind", "calm", "warm"), k=4)) for _ in range(80)]
    known = [(f"{word} kind", f"burn {word}") for word in ("calm", "warm", "kind")]
    for name, both in {
        "pairs": list(zip(answers, answers[40:], strict=False)),
        "known": known,
    }.items():
        rows = [{"prompt": "How was it?", "chosen": a, "rejected": b} for a, b in both]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    with serving(dislikes) as server:
        stages = yaml.safe_load(STAGES.replace("URL", server.url))
        model = {"base": "tiny", "dtype": "float32", "lora": "none"}
        out = run(write_recipe(tmp_path, stages, model))
    groups: list[Group] = read_groups(out / "labels" / "data.jsonl")
    assert len(groups) > 20
    for group in groups:
        (pair,) = group.pairs or ()
        counts = harm(*(response.text for response in group.responses))
        gap = counts[pair.worse] - counts[pair.better]
        assert gap > 0
        assert pair.p == pytest.approx(min((1 / (1 + math.exp(-gap)) + 0.5) / 2, 0.9), abs=1e-6)
    found = read_json(out / "check" / "stage.json")["summary"]
    (row, *_) = [row for row in found["results"] if row["metric"] == "accuracy"]
    assert row["counts"] == "3/0/0"
