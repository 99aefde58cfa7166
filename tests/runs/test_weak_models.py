"""A reward model that is hardly better than chance is named before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignkit.io.digest import digest
from alignkit.recipe.load import load_recipe
from alignkit.runs.prepare import weak_models

RECIPE = """
name: weak
model: {base: tiny}
stages:
  align: {algorithm: ppo, prompts: p.jsonl, reward: length, iterations: 1, gold: {folder: run/gold/adapter}}
  report: {step: evaluate, policies: [base, align], prompts: p.jsonl, rewards: [{folder: run/gold/adapter}]}
"""


@pytest.mark.parametrize(("accuracy", "told"), [(0.58, 1), (0.6, 0), (None, 0)])
def test_it_is_named_where_it_judges(tmp_path: Path, accuracy: float | None, told: int) -> None:
    (tmp_path / "run/gold/adapter").mkdir(parents=True)
    record = {"complete": True, "summary": {"validation": {"accuracy": accuracy}} if accuracy else {}}
    (tmp_path / "run/gold/stage.json").write_text(json.dumps({**record, "check": digest(record)}))
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "r.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "r.yaml")
    for name in ("align", "report"):
        found = list(weak_models(recipe.stages[name]))
        assert len(found) == told
        assert all("run/gold/adapter was right on 58% of its validation pairs" in text for text in found)
