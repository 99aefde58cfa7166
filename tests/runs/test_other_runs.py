"""Policies that another run trained: compared by their folders, checked before anything runs, and
never mixed up.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from alignkit.cli import main
from alignkit.errors import RecipeError
from alignkit.io.console import Reporter
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import BASE
from alignkit.runs.bases import RunBase
from alignkit_plugins.compare.rows import KL, rows_of

MODEL = {"base": "tiny", "dtype": "float32", "lora": {"r": 2, "lora_alpha": 4}}
WEIGHTS = "adapter_model.safetensors"


def write(folder: Path, stages: dict[str, Any], **model: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(
        yaml.safe_dump({"model": MODEL | model, "stages": stages}, sort_keys=False),
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with a policy and a reward model."""
    folder = tmp_path_factory.mktemp("other")
    demo, pair = (
        {"prompt": "is it?", "completion": "yes"},
        {"prompt": "is it?", "chosen": "yes", "rejected": "no"},
    )
    (folder / "demos.jsonl").write_text(json.dumps(demo), encoding="utf-8")
    (folder / "pairs.jsonl").write_text(json.dumps(pair), encoding="utf-8")
    stages = {
        "sft": {"algorithm": "sft", "data": "demos.jsonl", "epochs": 1, "learning_rate": 0.1},
        "scores": {"algorithm": "reward_model", "data": "pairs.jsonl", "epochs": 1},
    }
    assert main(["run", str(write(folder, stages)), "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def policy(other: Path, tmp_path: Path) -> Path:
    """A copy of the policy, to be damaged."""
    return Path(shutil.copytree(other / "sft" / "adapter", tmp_path / "policy"))


def compare(folder: Path, *policies: str, **model: Any) -> Path:
    (folder / "prompts.jsonl").write_text(json.dumps({"prompt": "is it?"}), encoding="utf-8")
    step = {
        "step": "evaluate",
        "policies": list(policies),
        "rewards": ["length"],
        "prompts": "prompts.jsonl",
    }
    return write(folder, {"report": step | {"sampling": {"max_new_tokens": 4}}}, **model)


def run(recipe: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["run", str(recipe), *overrides, "--out", str(recipe.parent / "out")])
    return code, capsys.readouterr().err


def test_the_policy_of_another_run_is_compared(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = compare(tmp_path, "base", "policy")
    assert run(recipe, capsys)[0] == 0
    result = json.loads(
        (tmp_path / "out" / "report" / "evaluation.json").read_text(encoding="utf-8")
    )
    assert (
        list(result["policies"]) == ["base", f"{tmp_path.name}/policy"]
        and result["baseline"] == "base"
    )
    sources = [
        json.loads(line)
        for line in (tmp_path / "out" / "report" / "samples.jsonl").read_text().splitlines()
    ]
    assert [r["source"] for r in sources[0]["responses"]] == list(result["policies"])
    base, own = (row for row in rows_of(result) if row.metric == KL)
    # The base's weights were not used for both
    assert abs(base.estimate["mean"]) < 1e-6 and abs(own.estimate["mean"]) > 1e-3
    assert "report: unchanged, reused" in run(recipe, capsys)[1]
    weights = load_file(policy / WEIGHTS)
    save_file(
        {key: value * 1.5 for key, value in weights.items()},
        policy / WEIGHTS,
        metadata={"format": "pt"},
    )
    assert "changed since the last run" in run(recipe, capsys)[1]


@pytest.mark.silent_bug(
    "evaluation: other runs",
    "An evaluation on the file that another run trained its policy on says nothing.",
    "The training data of other runs are read too, and a prompt among them is a warning.",
)
def test_prompts_that_another_run_trained_on_are_told(
    other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = compare(tmp_path, "base", str(other / "sft" / "adapter"))
    (tmp_path / "prompts.jsonl").write_text(
        (other.parent / "demos.jsonl").read_text(encoding="utf-8")
    )
    said = " ".join(run(recipe, capsys)[1].split())
    assert "prompts are training data (" in said and f"by {other.name}/sft" in said


@pytest.mark.parametrize("kind", ["reward model", "another base"])
def test_weights_that_do_not_fit_are_refused_first(
    kind: str, other: Path, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, problem = "./policy", "is an adapter for the base model 'tiny', not for"
    base = str(other.parent)
    if kind == "reward model":
        base, name, problem = (
            "tiny",
            str(other / "scores" / "adapter"),
            "holds a reward model, but a policy is needed",
        )
    else:
        base = str(tiny_with_other_weights(tmp_path))
    code, said = run(compare(tmp_path, "base", name, base=base), capsys)
    assert code == 2 and problem in said and "loading" not in said.replace("loading torch", "")


def test_adapters_of_another_rank_are_read_as_they_are(
    other: Path, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for lora in ({"r": 2, "lora_alpha": 4}, {"r": 4, "lora_alpha": 2}):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        recipe = compare(tmp_path, "base", "policy", lora=lora)
        rewards = f"stages.report.rewards=[{{folder: {other / 'scores' / 'adapter'}}}]"
        assert run(recipe, capsys, rewards)[0] == 0
        result = json.loads(
            (tmp_path / "out" / "report" / "evaluation.json").read_text(encoding="utf-8")
        )
        found.append(result["results"])
    assert found[0] == found[1]
    code, said = run(recipe, capsys, f"stages.report.rewards=[{{folder: {other / 'scores'}}}]")
    assert (
        code == 2
        and "such as 'adapter' or 'model'" in said
        and "loading" not in said.replace("loading torch", "")
    )


@pytest.mark.silent_bug(
    "rewards: other runs",
    "A reward model of another run scores texts of this run's chat template, which it never read.",
    "It is refused unless the recipe has its template.",
)
def test_a_reward_model_of_another_template_is_refused(
    other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewards = f"stages.report.rewards=[{{folder: {other / 'scores' / 'adapter'}}}]"
    code, said = run(compare(tmp_path, "base", chat_template="chatml"), capsys, rewards)
    assert code == 2 and "was trained on texts of another chat template" in said
    assert run(compare(tmp_path, "base"), capsys, rewards)[0] == 0


def test_a_whole_model_is_no_adapter_of_another_base(other: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "config.json").write_text("{}", encoding="utf-8")
    recipe = load_recipe(compare(tmp_path, "base"), ["stages.report.rewards=[{folder: whole}]"])
    RunBase(BASE, recipe, Reporter(), download=True).check(tmp_path / "whole", "reward")


def tiny_with_other_weights(folder: Path) -> Path:
    import alignkit_plugins.models.tiny

    source = Path(
        shutil.copytree(alignkit_plugins.models.tiny.source(folder / "models"), folder / "base")
    )
    weights = load_file(source / "model.safetensors")
    save_file(
        {key: value + 1 for key, value in weights.items()},
        source / "model.safetensors",
        {"format": "pt"},
    )
    return source


def test_check_tells_an_adapter_for_another_base(
    other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = str(other / "sft" / "adapter")
    for base, status in (("tiny", 0), (str(tiny_with_other_weights(tmp_path)), 2)):
        assert main(["check", str(compare(tmp_path, "base", policy, base=base))]) == status
        said = capsys.readouterr().err
        assert (
            not status
            or f"{policy} is an adapter for the base model 'tiny', not for '{base}'" in said
        )


def test_the_folder_inside_a_stage_is_suggested(other: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"holds neither an adapter(.*\n)*.*such as 'adapter'"):
        load_recipe(compare(tmp_path, "base", str(other / "sft")))
    with pytest.raises(RecipeError, match="'no/such' is neither a stage nor a folder"):
        load_recipe(compare(tmp_path, "base", "no/such"))


def test_a_folder_that_a_step_chose_is_started_from(
    other: Path, policy: Path, tmp_path: Path
) -> None:
    (tmp_path / "demos.jsonl").write_text(
        json.dumps({"prompt": "is it?", "completion": "yes"}), encoding="utf-8"
    )
    pick = {
        "step": "select_best",
        "policies": ["./policy", "base"],
        "reward": "length",
        "prompts": "demos.jsonl",
    }
    after = {
        "algorithm": "sft",
        "from": "pick",
        "data": "demos.jsonl",
        "max_steps": 1,
        "learning_rate": 1e-9,
    }
    recipe = write(tmp_path, {"pick": pick | {"sampling": {"max_new_tokens": 4}}, "after": after})
    assert main(["run", str(recipe), "--out", str(tmp_path / "out")]) == 0
    # Of equals the first
    assert json.loads((tmp_path / "out/pick/stage.json").read_text())["policy"] == str(policy)
    ours, theirs = (
        load_file(folder / WEIGHTS) for folder in (tmp_path / "out/after/adapter", policy)
    )
    assert all((ours[key] - theirs[key]).abs().max() < 1e-6 for key in theirs)


def test_another_scale_and_another_vocabulary_are_refused_first(
    other: Path, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = {"algorithm": "sft", "from": "policy", "data": "prompts.jsonl"}
    compare(tmp_path)
    code, said = run(write(tmp_path, {"sft": stage}, lora={"r": 4, "lora_alpha": 4}), capsys)
    assert (
        code == 2
        and "this adapter has r 2, but the recipe's model.lora has 4" in said
        and "loading" not in said.replace("loading torch", "")
    )
    (policy / "adapter_config.json").unlink()
    (policy / "config.json").write_text(
        json.dumps({"model_type": "llama", "vocab_size": 7}), encoding="utf-8"
    )
    code, said = run(write(tmp_path, {"sft": stage}), capsys)
    assert code == 2 and "holds a whole model, but with model.lora" in said
    code, said = run(write(tmp_path, {"sft": stage}, lora=None), capsys)
    assert (
        code == 2
        and "knows 7 tokens, but model.base 'tiny' has" in said
        and "loading" not in said.replace("loading torch", "")
    )


def test_other_files_beside_the_weights_do_not_change_the_base(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import alignkit_plugins.models.tiny

    base = Path(
        shutil.copytree(alignkit_plugins.models.tiny.source(tmp_path / "models"), tmp_path / "base")
    )
    save_file(load_file(base / "model.safetensors"), base / "consolidated.safetensors")
    assert run(compare(tmp_path, "base", "./policy", base=str(base)), capsys)[0] == 0
