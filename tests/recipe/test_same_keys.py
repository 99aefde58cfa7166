"""A swap between algorithms that learn from other keys says which ones learn from those of the
stage.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignkit.errors import RecipeError
from alignkit.recipe.load import load_recipe
from alignkit.recipe.yaml import find_recipe

ONLINE = "expert_iteration, grpo, hir, ppo, reinforce_pp, rejection_sampling, rest, rloo"


def swapped(stage: dict[str, Any], folder: Path) -> list[str]:
    """The problems of a recipe with one stage, as text."""
    recipe = folder / "r.json"
    recipe.write_text(
        json.dumps({"model": {"base": "tiny"}, "stages": {"s": stage}}), encoding="utf-8"
    )
    (folder / "d.jsonl").touch()
    with pytest.raises(RecipeError) as raised:
        load_recipe(recipe, [])
    return [str(problem) for problem in raised.value.problems]


def test_from_ppo_to_dpo() -> None:
    with pytest.raises(RecipeError) as raised:
        load_recipe(find_recipe("quickstart"), ["stages.align.algorithm=dpo"])
    (problem,) = raised.value.problems
    assert "override 'stages.align.algorithm=dpo'" in str(problem)
    assert "dpo learns from 'data', but the stage has 'prompts'" in str(problem)
    assert "help: write 'data: FILE' instead, or choose another algorithm" in str(problem)


def test_every_algorithm_that_is_named_takes_the_keys() -> None:
    for name in ("online_dpo", *ONLINE.split(", ")):
        load_recipe(find_recipe("quickstart"), [f"stages.align.algorithm={name}"])


def test_from_sft_to_ppo(tmp_path: Path) -> None:
    (problem,) = swapped({"algorithm": "ppo", "data": "d.jsonl"}, tmp_path)
    assert "ppo learns from 'prompts', but the stage has 'data'" in problem


def test_a_stage_with_both_keys_hears_of_the_one_too_many(tmp_path: Path) -> None:
    problems = swapped({"algorithm": "dpo", "data": "d.jsonl", "prompts": "d.jsonl"}, tmp_path)
    assert ["does not use 'prompts'" in problem for problem in problems] == [True]
