"""Advice on unknown keys names keys that exist today, and those that are gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignkit import RecipeError
from alignkit.contract.settings import LoraSpec, ModelSpec, Rollout, Settings
from alignkit.host.plugins import load_plugins
from alignkit.recipe.load import load_recipe
from alignkit.recipe.mistakes import RENAMED, RETIRED, advice
from alignkit.recipe.references import options_of
from alignkit.recipe.schema import allowed_keys
from tests.rows import write_recipe

LEARNED = "learned: {algorithm: grpo, prompts: prompts.jsonl, reward: length}"


def test_keys_of_other_tools_lead_to_keys_that_exist() -> None:
    registrations = load_plugins().registrations("algorithm")
    models = [ModelSpec, LoraSpec, Rollout, Settings, *map(options_of, registrations)]
    keys = {key for model in models for key in allowed_keys(model)}
    # Of TRL's GRPO, and ours of dpo
    assert {*RENAMED.values()} <= keys and keys & RENAMED.keys() == {"beta"}


@pytest.mark.parametrize(
    ("override", "help"),
    [
        ("algorithm={grpo: {dynamic_sampling: true}}", "filters: [spread]"),
        ("adam_beta1=0.8", "use 'optimizer'"),
    ],
)
def test_a_key_that_is_gone_says_what_to_write(override: str, help: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="unknown key") as caught:
        load_recipe(write_recipe(tmp_path, LEARNED), [f"stages.learned.{override}"])
    assert help in str(caught.value)
    assert all(advice(key, [f"{key}s"], {}) == text for key, text in RETIRED.items())
