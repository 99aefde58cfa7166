"""Recipes whose steps have rows for an executor: sampling, scores of rewards, and a judge's verdicts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from alignkit import Group, Pair, Response
from alignkit.data.group import write_groups

EXECUTORS = Path(__file__).with_name("executors.py")
CODE = """def reward(completions):
    if any("forbidden" in text for text in completions):
        raise ValueError("forbidden")
    return [None if len(text) % 11 == 0 else float(sum(map(ord, text)) % 97) / 7 for text in completions]
"""
PYTHON = {"python": {"path": "reward.py", "function": "reward"}}
TRAINED = {"algorithm": "reward_model", "data": "pairs.jsonl", "max_steps": 1, "learning_rate": 0.05}


def user(text: str) -> tuple[Any, ...]:
    return ({"role": "user", "content": text},)


def write_recipe(folder: Path, count: int, stages: dict[str, Any]) -> Path:
    """A recipe on `count` prompts of different lengths, and as many pairs."""
    texts = [f"bread {n} is {'good ' * (n % 7)}".strip() for n in range(count)]
    write_groups(folder / "prompts.jsonl", [Group(user(text)) for text in texts])
    pairs = [
        Group(user(text), (Response(f"{text} yes {n % 5}"), Response(f"no {n % 3} {text}")), (Pair(0, 1),))
        for n, text in enumerate(texts)
    ]
    write_groups(folder / "pairs.jsonl", pairs)
    (folder / "reward.py").write_text(CODE, encoding="utf-8")
    plain = {"model": {"base": "tiny", "dtype": "float32", "lora": {"r": 2}}, "stages": stages}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
    return folder / "recipe.yaml"


def sample(**keys: Any) -> dict[str, Any]:
    plain = {"step": "sample", "prompts": "prompts.jsonl", "samples_per_prompt": 2, "sampling": {"max_new_tokens": 5}}
    return {**plain, "reward": PYTHON, **keys}


def judged(url: str, **keys: Any) -> dict[str, Any]:
    """judge_pairs by a judge on a server."""
    judge = {"openai_judge": {"base_url": url, "model": "m", "api_key_env": "JUDGE_KEY", "concurrency": 4}}
    return {"step": "judge_pairs", "data": "pairs.jsonl", "judge": judge, "no_judge": "warn", **keys}  # it is a coin


def verdict(request: dict[str, Any]) -> dict[str, Any]:
    """An answer whose probabilities depend on the text of the question only."""
    first = 0.05 + 0.9 * (hashlib.sha256(json.dumps(request["messages"]).encode()).digest()[0] / 255)
    return answer(first)


def answer(first: float) -> dict[str, Any]:
    from math import log

    top = [{"token": "1", "logprob": log(first)}, {"token": "2", "logprob": log(1 - first)}]
    choice = {
        "message": {"role": "assistant", "content": "1"},
        "finish_reason": "stop",
        "logprobs": {"content": [{"token": "1", "logprob": log(first), "top_logprobs": top}]},
    }
    return {"model": "m", "choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}


def results(run: Path, stage: str) -> tuple[bytes, Any]:
    """What a step made: its data, and its summary."""
    record = json.loads((run / stage / "stage.json").read_text(encoding="utf-8"))
    return (run / stage / "data.jsonl").read_bytes(), record["summary"]
