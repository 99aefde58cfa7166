"""Whether a policy learned from a reward or a judge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import Recipe
from alignkit.runs.learned_from import RECIPE, learned_from

TEXT = """
name: small
model: {base: tiny}
stages:
  sft: {algorithm: sft, data: demos.jsonl}
  helpful: {algorithm: reward_model, from: sft, data: pairs.jsonl}
  gold: {algorithm: reward_model, from: sft, data: gold_pairs.jsonl}
  other: {algorithm: reward_model, from: sft, data: pairs.jsonl}
  ppo:
    algorithm: ppo
    from: sft
    prompts: prompts.jsonl
    reward: {llama2: {helpful: helpful, safety: {length: {unit: characters}}}}
    gold: gold
    iterations: 1
  dpo: {algorithm: dpo, from: sft, data: pairs.jsonl}
  labels: {step: judge_pairs, judge: {local_judge: {min_mass: 0.1}}, policy: sft, prompts: prompts.jsonl}
  labeled: {algorithm: dpo, from: ppo, data: labels}
  report:
    step: evaluate
    policies: [sft, ppo, dpo, labeled]
    rewards: [helpful, gold, other, length, refusal]
    judges: [local_judge, {openai_judge: {server: {model: x, base_url: "http://localhost:1/v1"}}}]
    prompts: prompts.jsonl
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    for name in ("pairs", "gold_pairs"):
        (tmp_path / f"{name}.jsonl").write_text(f"{json.dumps(pair)}\n")
    (tmp_path / "demos.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "recipe.yaml").write_text(TEXT)
    return load_recipe(tmp_path / "recipe.yaml")


def learned(recipe: Recipe, policy: str, raters: dict[str, Any]) -> set[str]:
    return {name for name, rater in raters.items() if learned_from(policy, rater, recipe)}


@pytest.fixture
def raters(recipe: Recipe) -> dict[str, Any]:
    options: Any = recipe.stages["report"].component.options
    return {spec.name: spec for spec in (*options.rewards, *options.judges)}


def test_a_policy_learned_from_its_reward_and_all_parts_of_it(recipe: Recipe, raters: dict[str, Any]) -> None:
    # `other` learned from the pairs of `helpful`, so it says the same.
    assert learned(recipe, "ppo", raters) == {"helpful", "length", "other"}
    assert learned(recipe, "ppo@2", raters) == {"helpful", "length", "other"}


def test_gold_only_watches(recipe: Recipe, raters: dict[str, Any]) -> None:
    assert learned_from("ppo", raters["gold"], recipe) is False


def test_a_policy_and_a_reward_model_learned_from_the_same_pairs(recipe: Recipe, raters: dict[str, Any]) -> None:
    assert learned(recipe, "dpo", raters) == {"helpful", "other"}


def test_labels_and_earlier_stages_count(recipe: Recipe, raters: dict[str, Any]) -> None:
    assert learned(recipe, "labeled", raters) == {"helpful", "other", "length", "local_judge"}


def test_untouched_models_learned_from_nothing(recipe: Recipe, raters: dict[str, Any]) -> None:
    assert learned(recipe, "base", raters) == learned(recipe, "sft", raters) == set()


def test_policies_of_other_runs(recipe: Recipe, raters: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    folder = str(run / "ppo" / "adapter")
    assert learned_from(folder, raters["length"], recipe) is None
    shutil.copy(tmp_path / "recipe.yaml", tmp_path / RECIPE)
    text = TEXT.replace(": demos", f": {tmp_path}/demos").replace(": prompts.", f": {tmp_path}/prompts.")
    text = text.replace(": pairs", f": {tmp_path}/pairs").replace(": gold_pairs", f": {tmp_path}/gold_pairs")
    (run / RECIPE).write_text(text)
    assert learned_from(folder, raters["length"], recipe) is True
    assert learned_from(folder, raters["refusal"], recipe) is False
    assert learned_from(folder, raters["helpful"], recipe) is True  # another model, which learned from the same pairs
    (run / RECIPE).write_text("stages: [")
    assert learned_from(folder, raters["length"], recipe) is None


def test_gold_that_chooses_the_result_counts(recipe: Recipe) -> None:
    path = recipe.folder / "recipe.yaml"
    path.write_text(TEXT.replace("    gold: gold\n", "    gold: gold\n    stop: {gold: falls}\n"))
    stopped = load_recipe(path)
    options: Any = stopped.stages["report"].component.options
    gold = next(spec for spec in options.rewards if spec.name == "gold")
    assert learned_from("ppo", gold, stopped) is True
    assert learned_from("dpo", gold, stopped) is False


def test_a_base_that_another_run_made_learned_what_that_run_taught(
    recipe: Recipe, raters: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    model = run / "ppo" / "model"
    model.mkdir(parents=True)
    text = TEXT.replace(": demos", f": {tmp_path}/demos").replace(": prompts.", f": {tmp_path}/prompts.")
    (run / RECIPE).write_text(text.replace(": pairs", f": {tmp_path}/pairs").replace(": gold_pairs", f": {tmp_path}/g"))
    shutil.copy(tmp_path / "pairs.jsonl", tmp_path / "g.jsonl")
    (tmp_path / "recipe.yaml").write_text(TEXT.replace("base: tiny", f"base: {model}"))
    second = load_recipe(tmp_path / "recipe.yaml")
    assert learned(second, "base", raters) == {"helpful", "other", "length"}
    assert learned(second, "sft", raters) == {"helpful", "other", "length"}


def test_what_an_earlier_result_learned_from_is_not_known(recipe: Recipe, raters: dict[str, Any]) -> None:
    # The stage may have had another reward when it made that result.
    assert learned_from("ppo@dpo", raters["length"], recipe) is None
    assert learned_from("ppo@ppo~1", raters["length"], recipe) is None
