"""Why a stage starts over is said in the words of its recipe, never in those of its hash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import Recipe, Stage
from alignkit.runs.fingerprint import RunData, stage_parts
from alignkit_plugins.report.changes import change_since
from tests.rows import write_recipe, write_rows

ALIGN = {
    "algorithm": "ppo",
    "prompts": "prompts.jsonl",
    "reward": "length",
    "iterations": 3,
    "epochs": 1,
}


def recipe_of(folder: Path, **changes: Any) -> Recipe:
    """A recipe whose stage `align` has other keys."""
    stages = {"sft": {"algorithm": "sft", "data": "demos.jsonl"}, "align": {**ALIGN, **changes}}
    return load_recipe(write_recipe(folder, stages, {"base": "tiny"}), [])


def parts_of(recipe: Recipe) -> dict[str, Any]:
    align, base = recipe.stages["align"], {"model.safetensors": "0"}
    parts = stage_parts(align, recipe, base, {"sft": "0"}, RunData(Path, 0))
    return dict(json.loads(json.dumps(parts, default=str)))


def record_of(recipe: Recipe) -> dict[str, Any]:
    """What a run records of the stage."""
    align = recipe.stages["align"]
    names: list[Any] = []
    if align.settings is not None and align.settings.prompts is not None:
        names = [{"name": source.name} for source in align.settings.prompts.sources]
    return {"plugin": align.component.name, "depends_on": parts_of(recipe), "data": names}


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"iterations": 4}, "iterations: 3 -> 4"),
    ({"learning_rate": 1e-3}, "learning_rate: not set -> 0.001"),
    ({"rollout": {"temperature": 0.7}}, "rollout.temperature: 1.0 -> 0.7"),
    ({"algorithm": {"ppo": {"gamma": 0.9}}}, "gamma: 1.0 -> 0.9"),
    ({"algorithm": "grpo", "learning_rate": 1e-3}, "algorithm: ppo -> grpo"),
    ({"prompts": {"path": "prompts.jsonl", "limit": 5}}, "prompts.limit: not set -> 5"),
    ({"reward": "repetition"}, "reward.name: length -> repetition"),
    (
        {"iterations": 4, "epochs": 2, "max_length": 999, "keep_versions": True},
        "iterations: 3 -> 4, epochs: 1 -> 2, max_length: 1024 -> 999 and 1 more",
    ),
]


@pytest.mark.parametrize(("changes", "told"), CHANGES)
def test_changes_of_a_recipe(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    before = record_of(recipe_of(tmp_path))
    changed = recipe_of(tmp_path, **changes)
    found = change_since(before, parts_of(changed), changed.stages["align"])
    assert found.startswith(f" ({told}") and "source" not in found and ".py" not in found


def test_files_that_have_changed_are_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": "what?"}])
    record = record_of(recipe_of(tmp_path))
    for name in ("prompts", "others"):
        write_rows(tmp_path / f"{name}.jsonl", [{"prompt": name}])
        recipe = recipe_of(tmp_path, prompts=f"{name}.jsonl")
        told = change_since(record, parts_of(recipe), recipe.stages["align"])
        assert told == " (prompts: the file has changed)"


BELOW: list[tuple[str, Any, str]] = [
    ("upstream sft", "1", "sft has changed"),
    ("base model.safetensors", "1", "the base model has changed"),
    ("component source ppo.py", "1", "the code of ppo has changed"),
    ("component version", "9", "the code of ppo has changed"),
    ("model lora r", 8, "model.lora.r: 16 -> 8"),
    ("seed", 7, "seed: 0 -> 7"),
]


def test_stages_code_and_settings_are_named(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    record, stage = record_of(recipe), recipe.stages["align"]
    now = record["depends_on"]
    for place, value, told in BELOW:
        changed = part = json.loads(json.dumps(now))
        *keys, last = place.split()
        for key in keys:
            part = part[key]
        part[last] = value
        assert change_since(record, changed, stage) == f" ({told})"
    assert change_since(record, now, stage) == "" and change_since({}, now, stage) == ""


def test_a_stage_that_was_a_step_and_the_other_way_around(tmp_path: Path) -> None:
    algorithm = recipe_of(tmp_path)
    sample = {"step": "sample", "policy": "sft", "prompts": "prompts.jsonl"}
    stages = {"sft": {"algorithm": "sft", "data": "demos.jsonl"}, "align": sample}
    step = load_recipe(write_recipe(tmp_path, stages, {"base": "tiny"}), [])

    def told(before: Recipe, now: Recipe) -> str:
        align: Stage = now.stages["align"]
        return change_since({**record_of(before), "summary": {}}, parts_of(now), align)

    assert told(step, algorithm) and told(algorithm, step)
