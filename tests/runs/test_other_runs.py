"""Policies that another run trained: compared by their folders, checked before anything runs, and
never mixed up.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import alignkit_plugins.bases.tiny
from alignkit.cli import main
from alignkit.io.console import Reporter
from alignkit.io.results import read_record
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import BASE
from alignkit.runs.model_source import ModelSource
from alignkit.runs.run import Run
from alignkit.runs.stage import Problems
from alignkit_plugins.compare.rows import KL, rows_in
from tests.rows import TINY, Said, read_json, run, write_recipe

WEIGHTS = "adapter_model.safetensors"
HOUSE = {**TINY, "lora": {"r": 4, "lora_alpha": 8}}
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
    base, own = (row for row in rows_in(found) if row.metric == KL)
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
    ModelSource(BASE, whole, Reporter(), download=True).check(policy, "reward")
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


USES = """
{step: evaluate, policies: [base, FOLDER], rewards: [length], prompts: prompts.jsonl}
{step: evaluate, policies: [base], rewards: [{folder: FOLDER}], prompts: prompts.jsonl}
{step: judge_pairs, data: pairs.jsonl, judge: {local_judge: {role: FOLDER}}}
{step: select_best, policies: [base, FOLDER], reward: length, prompts: prompts.jsonl}
{step: sample, policy: FOLDER, prompts: prompts.jsonl}
{algorithm: sft, data: demos.jsonl, from: FOLDER}
{algorithm: dpo, data: pairs.jsonl, reference: FOLDER}
"""


def with_another_token(adapter: Path) -> None:
    """Two letters of the vocabulary change their places."""
    tokenizer = read_json(adapter / "tokenizer.json")
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (adapter / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


def with_another_end(adapter: Path) -> None:
    config = read_json(adapter / "tokenizer_config.json")
    (adapter / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "a"}))


@pytest.mark.silent_bug(
    "rewards: other runs",
    "A model of another run reads texts of this run's chat template, which it never learned.",
    "It is refused unless the recipe has its template; a stage that starts from it warns.",
)
@pytest.mark.parametrize("use", USES.strip().splitlines())
def test_a_folder_that_read_other_texts_is_refused_wherever_it_is_named(
    use: str, house_run: Path, tmp_path: Path, said: Said
) -> None:
    name = "liked" if "{folder:" in use else "sft"
    adapter = Path(shutil.copytree(house_run / name / "adapter", tmp_path / "copy"))
    recipe = write_recipe(tmp_path, "s: " + use.replace("FOLDER", str(adapter)), HOUSE)
    own = str(house_run / name / "adapter")
    written = recipe.read_text(encoding="utf-8")

    def told(*overrides: str, folder: str = str(adapter)) -> tuple[bool, str]:
        recipe.write_text(written.replace(str(adapter), folder), encoding="utf-8")
        loaded, lines = load_recipe(recipe, overrides), list[str]()
        made = Run(loaded, tmp_path / "out")
        made.reporter.say = lines.append  # type: ignore[method-assign]
        problems = Problems(loaded)
        made.stages["s"].check_weights(problems)
        return bool(problems.problems), " ".join([*map(str, problems.problems), *lines])

    assert told() == (False, "")
    template = "was trained with another chat template"
    is_start = "from:" in use
    for changed in ("model.chat_template=chatml", "model.chat_template_kwargs={x: 1}"):
        found, text = told(changed, folder=own)
        assert found is not is_start and template in text and ("warning" in text) is is_start
    assert template in told("model.chat_template=chatml")[1]
    for damage, what, refused in (
        (with_another_token, "tokenizer", True),
        (with_another_end, "special token", False),
    ):
        again = Path(shutil.copytree(adapter, tmp_path / damage.__name__))
        damage(again)
        found, text = told(folder=str(again))
        assert found is refused and f"another {what}" in text


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
    source = alignkit_plugins.bases.tiny.source(folder / "models")
    base = Path(shutil.copytree(source, folder / "base"))
    weights = {key: value + more for key, value in load_file(base / "model.safetensors").items()}
    save_file(weights, base / f"{name}.safetensors", {"format": "pt"})
    return base
