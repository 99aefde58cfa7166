"""Advice on unknown keys names keys that exist today."""

from __future__ import annotations

from alignkit.contract.settings import LoraSpec, ModelSpec, Rollout, Settings
from alignkit.host.plugins import load_plugins
from alignkit.recipe.mistakes import RENAMED
from alignkit.recipe.references import options_of
from alignkit.recipe.schema import allowed_keys


def test_keys_of_other_tools_lead_to_keys_that_exist() -> None:
    registrations = load_plugins().registrations("algorithm")
    models = [ModelSpec, LoraSpec, Rollout, Settings, *map(options_of, registrations)]
    keys = {key for model in models for key in allowed_keys(model)}
    # Of TRL's GRPO, and ours of dpo
    assert {*RENAMED.values()} <= keys and keys & RENAMED.keys() == {"beta"}
