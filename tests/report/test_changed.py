"""Why a stage starts over is said in the words of its recipe, never in those of its hash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import Recipe
from alignkit.runs.fingerprint import RunData, stage_parts
from alignkit_plugins.cells.changes import change_since
from tests.rows import cells, write_recipe, write_rows

ALIGN = {"algorithm": "ppo", "prompts": "prompts.jsonl", "reward": "length", "iterations": 3}


def recipe_of(folder: Path, align: Any = ALIGN) -> Recipe:
    stages = {"sft": {"algorithm": "sft", "data": "demos.jsonl"}, "align": align}
    return load_recipe(write_recipe(folder, stages, {"base": "tiny"}), [])


def parts_of(recipe: Recipe) -> dict[str, Any]:
    align, base = recipe.stages["align"], {"model.safetensors": "0"}
    parts = stage_parts(align, recipe, base, {"sft": "0"}, RunData(Path))
    return dict(json.loads(json.dumps(parts, default=str)))


def told(before: Recipe, now: Recipe) -> str:
    """What is said of a stage that a run has recorded."""
    record = {"depends_on": parts_of(before), "summary": {}}
    return change_since(record, parts_of(now), now.stages["align"])


CHANGES = """
    {"iterations": 4}                                   | iterations: 3 -> 4
    {"learning_rate": 1e-3}                             | learning_rate: not set -> 0.001
    {"rollout": {"temperature": 0.7}}                   | rollout.temperature: 1.0 -> 0.7
    {"algorithm": {"ppo": {"gamma": 0.9}}}              | gamma: 1.0 -> 0.9
    {"algorithm": "rejection_sampling", "iterations": 2} \
| algorithm: ppo -> rejection_sampling, rollout.samples_per_prompt: 2 -> 4, iterations: 3 -> 2
    {"prompts": {"path": "prompts.jsonl", "limit": 5}}  | prompts.limit: not set -> 5
    {"reward": "repetition"}                            | reward.name: length -> repetition
    {"iterations": 4, "epochs": 3, "max_length": 999} | iterations: 3 -> 4, epochs: 2 -> 3, max_length: 1024 -> 999)
    {"iterations": 4, "epochs": 3, "max_length": 999, "keep_versions": true} \
| iterations: 3 -> 4, epochs: 2 -> 3, max_length: 1024 -> 999 and 1 more)
"""


@pytest.mark.parametrize(("changes", "expected"), cells(CHANGES))
def test_changes_of_a_recipe(tmp_path: Path, changes: str, expected: str) -> None:
    found = told(recipe_of(tmp_path), recipe_of(tmp_path, {**ALIGN, **json.loads(changes)}))
    assert found.startswith(f" ({expected}") and "source" not in found and ".py" not in found


def test_files_that_have_changed_are_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": "what?"}])
    before = recipe_of(tmp_path)
    parts = {"depends_on": parts_of(before)}  # without a result, such as of a stage that failed
    for name in ("prompts", "others"):
        write_rows(tmp_path / f"{name}.jsonl", [{"prompt": name}])
        now = recipe_of(tmp_path, {**ALIGN, "prompts": f"{name}.jsonl"})
        found = change_since(parts, parts_of(now), now.stages["align"])
        assert found == " (prompts: the file has changed)"


BELOW = """
    upstream sft           | "1" | sft has changed
    base model.safetensors | "1" | the base model has changed
    component source ppo.py | "1" | the code of ppo has changed
    component version      | "9" | the code of ppo has changed
    model lora r           | 8   | model.lora.r: 16 -> 8
    seed                   | 7   | seed: 0 -> 7
    seed                   | null | seed: 0 -> not set
    seed                   | "0123456789012345678901234567890123456789a" | seed has changed
    upstream other         | "1" | upstream.other: not set -> 1
    component recognized   | "1" | the code of ppo has changed
    settings from_         | "1" | from: not set -> 1
"""


def test_stages_code_and_settings_are_named(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    stage, now = recipe.stages["align"], parts_of(recipe)
    record = {"depends_on": now}
    for place, value, expected in cells(BELOW):
        changed = part = json.loads(json.dumps(now))
        *keys, last = place.split()
        for key in keys:
            part = part[key]
        part[last] = json.loads(value)
        assert change_since(record, changed, stage) == f" ({expected})"
    source = {**now["component"], "source": {"ppo.py": "1"}}
    both = {**now, "component": source, "seed": 7}
    assert change_since(record, both, stage).startswith(" (seed: 0 -> 7, the code of")
    assert change_since(record, now, stage) == "" and change_since({}, now, stage) == ""


def test_a_stage_that_was_a_step_and_the_other_way_around(tmp_path: Path) -> None:
    step = recipe_of(tmp_path, {"step": "sample", "policy": "sft", "prompts": "prompts.jsonl"})
    assert told(step, recipe_of(tmp_path)) == " (algorithm: sample -> ppo)"
    assert told(recipe_of(tmp_path), step) == " (step: ppo -> sample)"
