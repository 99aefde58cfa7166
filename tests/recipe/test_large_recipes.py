"""Recipes with thousands of mistakes are refused in seconds, and what is wrong fits on a screen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignkit.errors import RecipeError
from alignkit.recipe.load import load_recipe

SFT = {"algorithm": "sft", "data": "demos.jsonl"}


def refused(folder: Path, stages: dict[str, Any]) -> RecipeError:
    (folder / "demos.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    (folder / "r.yaml").write_text(
        json.dumps({"model": {"base": "tiny"}, "stages": stages}), encoding="utf-8"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(folder / "r.yaml")
    return caught.value


def test_a_mistake_is_reported_once(tmp_path: Path) -> None:
    assert (
        len(refused(tmp_path, {"sft": SFT | {"nothing": 1}, "more": SFT | {"nothing": 1}}).problems)
        == 2
    )
