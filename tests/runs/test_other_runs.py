"""Policies that another run trained: compared by their folders, checked before anything runs, and
never mixed up.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import alignkit_plugins.models.tiny
from alignkit.cli import main
from alignkit.io.console import Reporter
from alignkit.io.results import read_record
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import BASE
from alignkit.runs.bases import RunBase
from alignkit_plugins.compare.rows import KL, rows_of
from tests.rows import TINY, Said, read_json, run, write_recipe

WEIGHTS = "adapter_model.safetensors"
EVALUATE = """
report:
  step: evaluate
  policies: POLICIES
  rewards: [length]
  prompts: prompts.jsonl
  sampling: {max_new_tokens: 4}
"""


@pytest.fixture
def policy(house_run: Path, tmp_path: Path) -> Path:
    """A copy of a policy of another run, to be damaged."""
    return Path(shutil.copytree(house_run / "sft" / "adapter", tmp_path / "policy"))


def compare(folder: Path, *policies: str, **model: Any) -> Path:
    """A recipe that evaluates these policies."""
    model = {**TINY, "lora": {"r": 4, "lora_alpha": 8}, **model}
    return write_recipe(folder, EVALUATE.replace("POLICIES", json.dumps(policies)), model)


def result(recipe: Path, said: Said, *overrides: str) -> tuple[int, str]:
    """The exit code of a run, and what it said."""
    said()
    code = main(["run", str(recipe), *overrides, "--out", str(recipe.parent / "out")])
    return code, " ".join(said().split())


def refused(recipe: Path, said: Said, *overrides: str) -> str:
    """What is said of a recipe that is refused before a model is loaded."""
    code, err = result(recipe, said, *overrides)
    assert code == 2 and "loading" not in err.replace("loading torch", "")
    return err


def scored_by(folder: Path) -> str:
    return f"stages.report.rewards=[{{folder: {folder}}}]"


def test_the_policy_of_another_run_is_compared(policy: Path, tmp_path: Path, said: Said) -> None:
    recipe = compare(tmp_path, "base", "policy")
    assert result(recipe, said)[0] == 0
    report = tmp_path / "out" / "report"
    found = read_json(report / "evaluation.json")
    policies = ["base", f"{tmp_path.name}/policy"]
    assert list(found["policies"]) == policies and found["baseline"] == "base"
    base, own = (row for row in rows_of(found) if row.metric == KL)
    # The base's weights were not used for both
    assert abs(base.estimate["mean"]) < 1e-6 and abs(own.estimate["mean"]) > 1e-3
    assert "report: unchanged, reused" in result(recipe, said)[1]
    weights = {key: value * 1.5 for key, value in load_file(policy / WEIGHTS).items()}
    save_file(weights, policy / WEIGHTS, metadata={"format": "pt"})
    assert "changed since the last run" in result(recipe, said)[1]


@pytest.mark.silent_bug(
    "evaluation: other runs",
    "An evaluation on the file that another run trained its policy on says nothing.",
    "The training data of other runs are read too, and a prompt among them is a warning.",
)
def test_prompts_that_another_run_trained_on_are_told(
    house_run: Path, tmp_path: Path, said: Said
) -> None:
    recipe = compare(tmp_path, "base", str(house_run / "sft" / "adapter"))
    shutil.copy(house_run.parent / "demos.jsonl", tmp_path / "prompts.jsonl")
    err = result(recipe, said)[1]
    assert "prompts are training data (" in err and f"by {house_run.name}/sft" in err


def test_what_does_not_fit_is_refused_first(
    house_run: Path, policy: Path, tmp_path: Path, said: Said
) -> None:
    """Reward models as policies, adapters of another base or template, and whole models."""
    liked, sft = house_run / "liked" / "adapter", house_run / "sft" / "adapter"
    err = refused(compare(tmp_path, "base", str(liked)), said)
    assert "holds a reward model, but a policy is needed" in err
    base = str(copied(tmp_path, "model", 1.0))
    other = compare(tmp_path, "base", str(sft), base=base)
    fault = f"{sft} is an adapter for the base model 'tiny', not for '{base}'"
    assert fault in refused(other, said)
    assert main(["check", str(other)]) == 2 and fault in said()
    assert main(["check", str(compare(tmp_path, "base", str(sft)))]) == 0
    recipe = compare(tmp_path, "base")
    assert "such as 'adapter' or 'model'" in refused(recipe, said, scored_by(liked.parent))
    inside = refused(compare(tmp_path, "base", str(sft.parent)), said)
    assert "holds neither an adapter" in inside
    stage = {"sft": {"algorithm": "sft", "from": "policy", "data": "demos.jsonl"}}
    recipe = write_recipe(tmp_path, stage, {**TINY, "lora": {"r": 2, "lora_alpha": 4}})
    assert "this adapter has r 4, but the recipe's model.lora has 2" in refused(recipe, said)
    (policy / "adapter_config.json").unlink()
    config = {"model_type": "llama", "vocab_size": 7}
    (policy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "holds a whole model, but with model.lora" in refused(recipe, said)
    whole = load_recipe(compare(tmp_path, "base"), [scored_by(policy)])  # is its own base
    RunBase(BASE, whole, Reporter(), download=True).check(policy, "reward")
    recipe = write_recipe(tmp_path, stage, {**TINY, "lora": None})
    assert "knows 7 tokens, but model.base 'tiny' has" in refused(recipe, said)


def test_adapters_of_another_rank_are_read_as_they_are(
    house_run: Path, policy: Path, tmp_path: Path, said: Said
) -> None:
    found = []
    for lora in ({"r": 4, "lora_alpha": 8}, {"r": 2, "lora_alpha": 2}):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        recipe = compare(tmp_path, "base", "policy", lora=lora)
        assert result(recipe, said, scored_by(house_run / "liked" / "adapter"))[0] == 0
        report = tmp_path / "out" / "report" / "evaluation.json"
        found.append(read_json(report)["results"])
    assert found[0] == found[1]


@pytest.mark.silent_bug(
    "rewards: other runs",
    "A reward model of another run scores texts of this run's chat template, which it never read.",
    "It is refused unless the recipe has its template.",
)
def test_a_reward_model_of_another_template_is_refused(
    house_run: Path, tmp_path: Path, said: Said
) -> None:
    for model in ({"chat_template": "chatml"}, {"chat_template_kwargs": {"x": 1}}):
        recipe = compare(tmp_path, "base", **model)
        code, err = result(recipe, said, scored_by(house_run / "liked" / "adapter"))
        assert code == 2 and "was trained on texts of another chat template" in err


def test_a_folder_that_a_step_chose_is_started_from(policy: Path, tmp_path: Path) -> None:
    stages = """
pick:
  step: select_best
  policies: [./policy, base]
  reward: length
  prompts: prompts.jsonl
  sampling: {max_new_tokens: 1}
after: {algorithm: sft, from: pick, data: demos.jsonl, max_steps: 1, learning_rate: 1.0e-9}
"""
    out = run(write_recipe(tmp_path, stages))
    assert read_record(out / "pick")["policy"] == str(policy)  # of equals the first
    ours, theirs = (load_file(folder / WEIGHTS) for folder in (out / "after" / "adapter", policy))
    assert all((ours[key] - theirs[key]).abs().max() < 1e-6 for key in theirs)


def test_other_files_beside_the_weights_do_not_change_the_base(
    policy: Path, tmp_path: Path, said: Said
) -> None:
    base = copied(tmp_path, "consolidated", 0.0)
    assert result(compare(tmp_path, "base", "./policy", base=str(base)), said)[0] == 0


def copied(folder: Path, name: str, more: float) -> Path:
    """The tiny model, with its weights and something more in another file, or in its own."""
    source = alignkit_plugins.models.tiny.source(folder / "models")
    base = Path(shutil.copytree(source, folder / "base"))
    weights = {key: value + more for key, value in load_file(base / "model.safetensors").items()}
    save_file(weights, base / f"{name}.safetensors", {"format": "pt"})
    return base
