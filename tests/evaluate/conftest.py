"""Runs whose models are evaluated, made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit import Group, Message, Response
from alignkit.cli import main
from alignkit.data.group import write_groups

WORDS = ("bread is good", "my old friend", "the people in this house")


def train(folder: Path, model: dict[str, Any], *names: str) -> Path:
    """A finished run in `folder`/run."""
    rows = [
        Group((Message(role="user", content=text),), (Response(text=text[::-1]),)) for text in WORDS
    ]
    write_groups(folder / "prompts.jsonl", rows)
    both = (Response(text="good bread", rank=0), Response(text="no", rank=1))
    write_groups(folder / "pairs.jsonl", [Group(group.prompt, both) for group in rows])
    (folder / "words.jinja").write_text(
        "{% for m in messages %}{{ m.content }}\n{% endfor %}", encoding="utf-8"
    )
    rollout = {"max_new_tokens": 6, "samples_per_prompt": 2, "temperature": 0.5}
    common = {"learning_rate": 0.02, "batch_size": 1}
    stages = {
        "sft": {
            "algorithm": "sft",
            "data": "prompts.jsonl",
            "max_steps": 2,
            "keep_versions": True,
            **common,
        },
        "liked": {"algorithm": "reward_model", "data": "pairs.jsonl", "max_steps": 1, **common},
        "online": {
            "algorithm": "rloo",
            "prompts": "prompts.jsonl",
            "reward": "liked",
            "rollout": rollout,
        }
        | {"iterations": 1, "prompts_per_iteration": 2, **common},
    }
    chosen = {name: stages[name] for name in names}
    text = yaml.safe_dump(
        {"model": {"base": "tiny", "dtype": "float32", **model}, "stages": chosen}
    )
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    assert main(["run", str(folder / "recipe.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory, _cache: None) -> Path:
    """A run with adapters of rank 4 and a template of its own."""
    model = {"lora": {"r": 4, "lora_alpha": 8}, "chat_template": "words.jinja"}
    return train(tmp_path_factory.mktemp("first"), model, "sft", "liked", "online")


@pytest.fixture(scope="session")
def other_run(tmp_path_factory: pytest.TempPathFactory, _cache: None) -> Path:
    """A run with adapters of rank 2 on the same base model."""
    return train(tmp_path_factory.mktemp("other"), {"lora": {"r": 2, "lora_alpha": 8}}, "sft")


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory, _cache: None) -> Path:
    """A run that trains all weights."""
    return train(tmp_path_factory.mktemp("whole"), {"lora": "none"}, "sft")
