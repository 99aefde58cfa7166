"""The prompts of an online stage: every row with its own columns, drawn as often as its source's weight says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit.data.group import Group, read_groups
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import run_recipe


def asked(folder: Path, prompts: Any, **settings: Any) -> list[list[Group]]:
    """The rollouts of each iteration of a stage with these prompts."""
    stage: dict[str, Any] = {
        "algorithm": "expert_iteration",
        "prompts": prompts,
        "reward": "length",
        "rollout": {"samples_per_prompt": 1, "max_new_tokens": 2},
        "batch_size": 64,
        "epochs": 1,
        "learning_rate": 0.0001,
        **settings,
    }
    recipe = {"model": {"base": "tiny", "dtype": "float32"}, "stages": {"align": stage}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    run_recipe(load_recipe(folder / "recipe.yaml"), folder / "out")
    return [read_groups(path) for path in sorted((folder / "out" / "align" / "rollouts").glob("*.jsonl"))]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_rows_with_equal_words_are_sampled_apart_and_keep_their_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "which?", "answer": n} for n in (1, 2, 3)]
    write(tmp_path / "p.jsonl", [*rows, {"prompt": "why?", "answer": 1}, rows[0]])
    [groups] = asked(tmp_path, "p.jsonl", prompts_per_iteration=5, iterations=1)
    said = sorted((group.prompt[0]["content"], group.meta["answer"]) for group in groups)
    assert said == [("which?", 1), ("which?", 1), ("which?", 2), ("which?", 3), ("why?", 1)]
    output = " ".join(capsys.readouterr().err.split())
    assert "1 row of 'prompts' repeats the words and columns of another" in output
