"""Advice on unknown keys names keys that exist today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from alignkit.errors import Problem, RecipeError
from alignkit.plugins import load_plugins
from alignkit.recipe.load import load_recipe
from alignkit.recipe.mistakes import _ADVICE, _OPTION, _PLACES, advice
from alignkit.recipe.references import options_of
from alignkit.recipe.schema import DataKeys, allowed_keys
from alignkit.settings import LoraSpec, Mix, ModelSpec, Quantization, Rollout, Settings

CORE = {key for keys in _PLACES.values() for key in keys} | {"algorithm", "NAME"}
CORE |= {*allowed_keys(Mix), *allowed_keys(Quantization), *allowed_keys(DataKeys)}


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
        ("temperature", "'temperature' belongs under 'rollout:' of a stage that trains, or 'sampling:' of a step"),
        ("seed", "'seed' belongs at the top level of the recipe"),
        ("repeat", "a block of stages"),
        ("zzz", "known keys: epochs, learning_rate"),
        ("epoch", "did you mean 'epochs'?"),
        ("rank", "use 'r' under 'model: lora:'"),
    ],
)
def test_advice(key: str, text: str) -> None:
    assert text in advice(key, ["learning_rate", "epochs"])


def test_advice_names_no_place_where_the_key_is_already() -> None:
    assert advice("rank", ["lora_alpha", "r"]) == "use 'r'"


RECIPE = """
model: {base: tiny}
stages:
  sft: {algorithm: sft, data: d.jsonl}
  align:
    algorithm: {ppo: {lam: 0.95}}
    prompts: d.jsonl
    reward: {length: {unit: characters}}
"""


def problems(folder: Path, *overrides: str) -> list[Problem]:
    (folder / "d.jsonl").write_text('{"prompt": "q"}\n', encoding="utf-8")
    (folder / "r.yaml").write_text(RECIPE, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(folder / "r.yaml", overrides, load_plugins().registry)
    return caught.value.problems


@pytest.mark.parametrize(
    "key", ["stages.align.algorithm.kl_coefficient", "algorithm.kl_coefficient", "kl_coefficient", "kl_coef",
            "stages.align.kl_coef", "stages.align.algorithm.kl_coeff", "stages.align.algorithm.kl_coeficient"]
)  # fmt: skip
def test_an_option_outside_of_its_plugin_gets_its_whole_path(tmp_path: Path, key: str) -> None:
    (problem,) = problems(tmp_path, f"{key}=0.1")
    assert problem.file == f"override '{key}=0.1'"
    assert "stages.align.algorithm.ppo.kl_coefficient" in problem.help


def test_an_option_of_a_plugin_without_options_gets_its_path(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "stages.sft.algorithm.beta=0.1")
    assert problem.help.startswith("write 'stages.sft.algorithm.sft.beta=...' for an option of sft, or")


def test_wrong_overrides_hide_no_other_mistake(tmp_path: Path) -> None:
    found = problems(tmp_path, "stages.algn.epochs=2", "~seed", "modl=3", "stages.sft.epochs=0")
    messages = sorted(problem.message.partition(":")[0] for problem in found)
    assert messages == ["cannot delete 'seed'", "no stage 'algn'", "stages.sft.epochs", "unknown key 'modl'"]


def test_a_key_of_a_server_belongs_under_it(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    judge = "{openai_judge: {base_url: 'http://localhost:1/v1', model: m}}"
    stage = f"{{step: judge_pairs, judge: {judge}, prompts: p.jsonl, policy: base}}"
    (tmp_path / "recipe.yaml").write_text(f"model: {{base: tiny}}\nstages:\n  made: {stage}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    for key in ("base_url", "model"):
        assert f"help: '{key}' belongs under 'server:'" in str(caught.value)
