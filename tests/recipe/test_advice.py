"""Advice on unknown keys names keys that exist today."""

from __future__ import annotations

import re

import pytest

from alignkit.plugins import load_plugins
from alignkit.recipe.advice import _ADVICE, _OPTION, _PLACES, advice
from alignkit.recipe.components import options_of
from alignkit.recipe.schema import allowed_keys
from alignkit.settings import LoraSpec, Mix, ModelSpec, Rollout, Settings

CORE = {key for keys in _PLACES.values() for key in keys} | set(allowed_keys(Mix)) | {"algorithm", "NAME"}


def options() -> set[str]:
    registrations = load_plugins().registry.registrations("algorithm")
    return {key for registration in registrations for key in allowed_keys(options_of(registration))}


def test_advice_names_keys_that_exist() -> None:
    for text in set(_ADVICE.values()):
        keys = [key for quoted in re.findall(r"'([^']*)'", text) for key in re.findall(r"(\w+):|^(\w+)$", quoted)]
        named = {first or second for first, second in keys} - {"base"}
        assert named <= CORE, text


def test_advice_names_options_that_algorithms_have() -> None:
    assert set(_OPTION.values()) <= options()
    assert advice("cliprange", ["clip_range"]) == "use 'clip_range'"


def test_no_key_of_another_tool_is_a_key_of_the_core() -> None:
    assert not (_ADVICE | _OPTION).keys() & {
        key for model in (ModelSpec, LoraSpec, Rollout, Settings) for key in allowed_keys(model)
    }


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("kl_coef", "kl_coefficient"),
        ("cliprange", "an option of the algorithm: 'algorithm: {NAME: {clip_range: ...}}'"),
        ("save_total_limit", "keep_versions"),
        ("replay_buffer", "replay_from"),
        ("num_generations", "'samples_per_prompt' under 'rollout:'"),
        ("temperature", "'temperature' belongs under the stage's 'rollout:'"),
        ("seed", "'seed' belongs at the top level of the recipe or in the stage"),
        ("repeat", "a block of stages"),
        ("zzz", "known keys: epochs, learning_rate"),
        ("epoch", "did you mean 'epochs'?"),
    ],
)
def test_advice(key: str, text: str) -> None:
    assert text in advice(key, ["learning_rate", "epochs"])
