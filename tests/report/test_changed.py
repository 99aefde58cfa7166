"""Why a stage starts over is said in the words of its recipe, never in those of its hash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import Recipe
from alignkit.runs.fingerprint import RunData, stage_parts
from alignkit_plugins.report.changes import change_since

ALIGN = {"algorithm": "ppo", "prompts": "p.jsonl", "reward": "length", "iterations": 3, "epochs": 1}


def recipe_of(folder: Path, **changes: Any) -> Recipe:
    """A recipe with one stage. changes: of its keys."""
    if not (folder / "p.jsonl").exists():
        (folder / "p.jsonl").write_text('{"prompt": "what?"}\n', encoding="utf-8")
    stage = {key: value for key, value in {**ALIGN, **changes}.items() if value is not None}
    stages = {"sft": {"algorithm": "sft", "data": "p.jsonl"}, "align": {**stage, "from": "sft"}}
    path = folder / "r.json"
    path.write_text(json.dumps({"model": {"base": "tiny"}, "stages": stages}), encoding="utf-8")
    return load_recipe(path, [])


def parts_of(recipe: Recipe, sft: str = "0") -> dict[str, Any]:
    parts = stage_parts(
        recipe.stages["align"], recipe, {"model.safetensors": "0"}, {"sft": sft}, RunData(Path, 0)
    )
    return dict(json.loads(json.dumps(parts, default=str)))


def record_of(recipe: Recipe) -> dict[str, Any]:
    settings = recipe.stages["align"].settings
    assert settings is not None and settings.prompts is not None
    names = [{"name": source.name} for source in settings.prompts.sources]
    plugin = recipe.stages["align"].component.name
    return {
        "plugin": plugin,
        "depends_on": parts_of(recipe),
        "data": names,
    }


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"iterations": 4}, "iterations: 3 -> 4"),
        ({"learning_rate": 1e-3}, "learning_rate: not set -> 0.001"),
        ({"rollout": {"temperature": 0.7}}, "rollout.temperature: 1.0 -> 0.7"),
        ({"algorithm": {"ppo": {"gamma": 0.9}}}, "gamma: 1.0 -> 0.9"),
        ({"algorithm": "rejection_sampling"}, "algorithm: ppo -> rejection_sampling"),
        ({"algorithm": "grpo", "learning_rate": 1e-3}, "algorithm: ppo -> grpo"),
        ({"prompts": {"path": "p.jsonl", "limit": 5}}, "prompts.limit: not set -> 5"),
        ({"reward": "repetition"}, "reward.name: length -> repetition"),
        ({"iterations": 4, "epochs": 2, "max_length": 999, "keep_versions": True}, None),
    ],
)
def test_changes_of_a_recipe(tmp_path: Path, changes: Mapping[str, Any], told: str | None) -> None:
    before = record_of(recipe_of(tmp_path))
    changed = recipe_of(tmp_path, **changes)
    found = change_since(before, parts_of(changed), changed.stages["align"])
    if told is None:
        assert found == " (iterations: 3 -> 4, epochs: 1 -> 2, max_length: 1024 -> 999 and 1 more)"
    else:
        assert found.startswith(f" ({told}") and "source" not in found and ".py" not in found


def test_files_stages_and_code_are_named(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    record, stage = record_of(recipe), recipe.stages["align"]
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n', encoding="utf-8")
    recipe = recipe_of(tmp_path)
    assert (
        change_since(record, parts_of(recipe), recipe.stages["align"])
        == " (prompts: the file has changed)"
    )
    (tmp_path / "q.jsonl").write_text('{"prompt": "b"}\n', encoding="utf-8")
    other = recipe_of(tmp_path, prompts="q.jsonl")
    expected = " (prompts: the file has changed)"
    assert change_since(record, parts_of(other), other.stages["align"]) == expected
    now = record["depends_on"]
    for keys, value, told in (
        (("upstream", "sft"), "1", "sft has changed"),
        (("base", "model.safetensors"), "1", "the base model has changed"),
        (("component", "source", "ppo.py"), "1", "the code of ppo has changed"),
        (("component", "version"), "9", "the code of ppo has changed"),
        (("versions", "torch"), "9", f"versions.torch: {now['versions']['torch']} -> 9"),
        (("model", "lora", "r"), 8, "model.lora.r: 16 -> 8"),
        (("seed",), 7, "seed: 0 -> 7"),
    ):
        changed = json.loads(json.dumps(now))
        place = changed
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        assert change_since(record, changed, stage) == f" ({told})"
    assert change_since(record, now, stage) == "" and change_since({}, now, stage) == ""


def test_a_stage_that_was_a_step_and_the_other_way_around(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "what?"}\n', encoding="utf-8")
    (tmp_path / "r.json").write_text(
        json.dumps(
            {
                "model": {"base": "tiny"},
                "stages": {
                    "sft": {"algorithm": "sft", "data": "p.jsonl"},
                    "align": {"step": "sample", "policy": "sft", "prompts": "p.jsonl"},
                },
            }
        ),
        encoding="utf-8",
    )
    step = load_recipe(tmp_path / "r.json", [])
    before = {"plugin": "sample", "depends_on": parts_of(step), "data": [], "summary": {}}
    algorithm = recipe_of(tmp_path)
    assert change_since(before, parts_of(algorithm), algorithm.stages["align"])
    assert change_since(record_of(algorithm), parts_of(step), step.stages["align"])
