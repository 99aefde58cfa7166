"""Advice on unknown keys names keys that exist today."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignkit.errors import Problem, RecipeError
from alignkit.plugins import load_plugins
from alignkit.recipe.load import load_recipe
from alignkit.recipe.mistakes import RENAMED, advice
from alignkit.recipe.references import options_of
from alignkit.recipe.schema import allowed_keys
from alignkit.settings import LoraSpec, ModelSpec, Rollout, Settings


def test_keys_of_other_tools_lead_to_keys_that_exist() -> None:
    registrations = load_plugins().registrations("algorithm")
    models = [ModelSpec, LoraSpec, Rollout, Settings, *map(options_of, registrations)]
    keys = {key for model in models for key in allowed_keys(model)}
    # Of TRL's GRPO, and ours of dpo
    assert {*RENAMED.values()} <= keys and keys & RENAMED.keys() == {"beta"}


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("seed", "it belongs elsewhere"),
        ("zzz", "known keys: epochs, learning_rate"),
        ("epoch", "did you mean 'epochs'?"),
        ("num_train_epochs", "use 'epochs'"),
    ],
)
def test_advice(key: str, text: str) -> None:
    assert text in advice(key, ["learning_rate", "epochs"], {"seed": "it belongs elsewhere"})


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
        load_recipe(folder / "r.yaml", overrides)
    return caught.value.problems


def test_wrong_overrides_hide_no_other_mistake(tmp_path: Path) -> None:
    found = problems(tmp_path, "stages.algn.epochs=2", "~seed", "modl=3", "stages.sft.epochs=0")
    messages = sorted(problem.message.partition(":")[0] for problem in found)
    assert messages == ["no such key", "no such key", "stages.sft.epochs", "unknown key 'modl'"]


def test_another_tools_name_of_an_algorithms_option_gets_its_path(tmp_path: Path) -> None:
    for key in ("kl_coef", "beta"):
        (problem,) = problems(tmp_path, f"stages.align.{key}=0.1")
        assert (
            problem.help
            == "it is an option of ppo: write 'algorithm: {ppo: {kl_coefficient: ...}}'"
        )


def test_another_tools_name_of_a_key_of_rollout_gets_its_path(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "stages.align.num_generations=8")
    assert problem.help == "it is a key of rollout: write 'rollout: {samples_per_prompt: ...}'"
    (problem,) = problems(tmp_path, "stages.sft.num_generations=8")  # which samples nothing
    assert "rollout" not in problem.help
