"""A folder with a finished run and all that a run reads, and commands in it that meet a fault."""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import re
import shutil
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from alignkit.cli import main
from alignkit.io.text import cache_folder
from alignkit_plugins.bases import tiny
from tests.rows import WORDS, demos, pairs, prompts, write_recipe, write_rows

LIMIT = 120  # seconds
TIDY_CODES = (0, 1, 2, 3, 4, 5, 6, 75)
# Whose bytes must be those of a whole run
RESULTS = ("adapter_model.safetensors", "data.jsonl", "samples.jsonl")

# A stage of every kind
STAGES = """
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
"""
# Recipes that read one other thing each
ONE = "stages: {sft: {algorithm: sft, data: demos.jsonl, max_steps: 1, from: %s}}\n"
RECIPES = {
    "model": "model: {base: ./model, lora: {r: 2, lora_alpha: 4}}\n" + ONE % "base",
    "adapter": "model: {base: tiny, lora: {r: 2, lora_alpha: 4}}\n" + ONE % "./adapter",
    "template": "model: {base: tiny, chat_template: template.jinja}\n" + ONE % "base",
}
ROWS = r"""
{"prompt": "how are you", "completion": "fine", "label": true}
{"prompt": "how are you", "chosen": "fine", "rejected": "bad"}
{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}
{"instruction": "say hi", "input": "", "output": "hi"}
{"chosen": "\n\nHuman: hi\n\nAssistant: hello", "rejected": "\n\nHuman: hi\n\nAssistant: no"}
{"text": "just a text"}
"""


def write_world(folder: Path) -> None:
    chance = random.Random(0)
    texts = [" ".join(chance.choices(" ".join(WORDS).split(), k=4)) for _ in range(4)]
    write_rows(folder / "demos.jsonl", demos(texts))
    write_rows(folder / "pairs.jsonl", pairs(texts, "my friend is in this house", "the house"))
    write_rows(folder / "prompts.jsonl", prompts(texts))
    model = {"base": "tiny", "lora": {"r": 2, "lora_alpha": 4}}
    code, said = command(folder, "run", write_recipe(folder, STAGES, model).name, "--out", "run")
    assert code == 0, said
    shutil.copytree(tiny.source(cache_folder()), folder / "model")
    shutil.copytree(folder / "run" / "sft" / "adapter", folder / "adapter")
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text)
    stages: dict[str, Any] = {}
    for number, line in enumerate(ROWS.strip().splitlines()):
        (folder / f"row{number}.jsonl").write_text(line)
        stages[f"stage{number}"] = {"algorithm": "sft", "data": f"row{number}.jsonl"}
    (folder / "rows.yaml").write_text(yaml.safe_dump({"model": model, "stages": stages}))


def results(run: Path) -> dict[str, str]:
    """Digests of what a run is for, by name, without what was set aside."""
    found = {}
    for name in yaml.safe_load(STAGES):
        stage = (run / name).resolve()
        for file in stage.rglob("*"):
            inside = file.relative_to(stage)
            if file.name in RESULTS and "checkpoints" not in inside.parts:
                found[f"{name}/{inside}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


class TooLong(BaseException):
    """Raised by the alarm."""


def command(folder: Path, *words: str) -> tuple[int, str]:
    """The exit code and the output of a command that succeeds, or refuses in words, in a folder."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooLong

    text, before = io.StringIO(), signal.signal(signal.SIGALRM, ring)
    signal.alarm(LIMIT)
    try:
        with contextlib.chdir(folder):
            with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
                code = main(list(words))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    said = text.getvalue()
    assert code in TIDY_CODES, said
    assert "Traceback (most recent call last)" not in said and "error: unexpected " not in said, (
        said
    )
    assert not re.search("[\x1b\x07\x9b]", said), "it lets a file act on the terminal"
    return code, said
