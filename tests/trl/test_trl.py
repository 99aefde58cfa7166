"""TRL's trainers as stages: each is built and trained a few steps, so that a TRL that changes is
noticed here.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import alignkit_plugins.models.tiny
import alignkit_plugins.trl.step
from alignkit import Group, Pair, Response, RunFailed
from alignkit.data.group import read_groups, write_groups
from alignkit.errors import DataError, RecipeError
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import run_recipe
from alignkit_plugins.trl.config import config_fields
from alignkit_plugins.trl.rows import demonstrations, pairs
from alignkit_plugins.trl.step import check_reference

PROMPT = ({"role": "user", "content": "how are you"},)
ANSWERS = tuple(Response(text=text) for text in ("I am well, thank you", "go away", "fine"))
RANKED = Group(PROMPT, ANSWERS, (Pair(0, 1), Pair(2, 0, p=0.2), Pair(1, 2, p=0.5)), id="g")


def stage(trainer: str, **options: Any) -> dict[str, Any]:
    common = {"algorithm": {"trl": {"trainer": trainer, **options}}, "from": "sft", "batch_size": 2}
    data = "demos.jsonl" if trainer == "sft" else "pairs.jsonl"
    return common | {"data": data, "max_steps": 3, "max_length": 128, "learning_rate": 0.01}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    groups = [
        replace(RANKED, id=str(n), prompt=({"role": "user", "content": f"how are you, {n}"},))
        for n in range(6)
    ]
    write_groups(tmp_path / "pairs.jsonl", groups)
    demos = [
        replace(g, responses=(Response(text=f"I am well, {g.id}"),), pairs=None) for g in groups
    ]
    write_groups(tmp_path / "demos.jsonl", demos)
    return tmp_path


def load(folder: Path, **stages: Any) -> Any:
    first = {
        "sft": {"algorithm": "sft", "data": "demos.jsonl", "learning_rate": 0.01, "batch_size": 2}
    }
    recipe = {
        "model": {"base": "tiny", "lora": {"r": 4, "lora_alpha": 8}},
        "stages": first | stages,
    }
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return load_recipe(folder / "r.yaml")


def weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / stage / "adapter" / "adapter_model.safetensors")


TRAINERS = [
    name if name == "dpo" else pytest.param(name, marks=pytest.mark.slow)
    for name in alignkit_plugins.trl.step.TRAINERS
]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_trainer_starts_where_the_stage_does_and_leaves_an_adapter(
    folder: Path, trainer: str
) -> None:
    after = {"algorithm": "reward_model", "from": "trained", "data": "pairs.jsonl", "batch_size": 6}
    run_recipe(load(folder, trained=stage(trainer), after=after), folder / "out")
    before, trained, later = (weights(folder, name) for name in ("sft", "trained", "after"))
    shared = before.keys() & trained.keys()
    assert len(shared) == len(before) and (trainer == "reward") == (
        "base_model.model.score.weight" in trained
    )
    moved = [float((trained[name] - before[name]).abs().max()) for name in shared]
    # Three steps of 0.01 from the SFT adapter, not from a fresh one, which has a zero B and a
    # random A.
    assert 0 < max(moved) < 0.05
    next_moved = [float((later[name] - trained[name]).abs().max()) for name in shared]
    assert 0 < max(next_moved) < 0.05
    logged = [
        json.loads(line)
        for line in (folder / "out" / "trained" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [row["loss"] for row in logged if "loss" in row]
    assert (
        len(losses)
        == json.loads((folder / "out" / "trained" / "stage.json").read_text())["summary"]["steps"]
    )
    if trainer == "dpo":  # policy and reference are the same at first
        assert losses[0] == pytest.approx(math.log(2), abs=1e-3) and losses[1] < losses[0]


def test_samples_end_where_the_run_ends_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also at the chat template's end of turn, which the model's own settings need not name."""
    monkeypatch.setattr("peft.PeftModel.from_pretrained", lambda model, *_, **__: model)
    base, ends = alignkit_plugins.models.tiny.source(tmp_path), frozenset({7, 2})
    loaded = SimpleNamespace(source=base, dtype=torch.float32, device="cpu")
    models = SimpleNamespace(encoder=SimpleNamespace(end_ids=ends))
    stage: Any = SimpleNamespace(model=loaded, models=models)
    model = alignkit_plugins.trl.step.load_model(stage, tmp_path, scalar_head=False)
    assert model.generation_config.eos_token_id == [2, 7]


def test_the_reference_is_checked() -> None:
    parameters = {"x.default.w": torch.ones(2), "x.ref.w": torch.ones(2)}
    model = SimpleNamespace(named_parameters=lambda: parameters.items())
    trainer = SimpleNamespace(
        model=model, accelerator=SimpleNamespace(unwrap_model=lambda m: m), beta=0.1
    )
    check_reference(trainer)
    parameters["x.ref.w"] = torch.zeros(2)
    with pytest.raises(RunFailed, match="reference"):
        check_reference(trainer)
    trainer.beta = 0.0  # TRL then has no reference, and needs none
    check_reference(trainer)
    trainer.beta = 0.1
    del parameters["x.ref.w"]
    with pytest.raises(RunFailed, match="reference"):
        check_reference(trainer)


def test_pairs() -> None:
    found = [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in pairs(RANKED)]
    # P = 0.2 turns a pair, 0.5 drops it
    assert found == [(ANSWERS[0].text, "go away"), (ANSWERS[0].text, "fine")]
    assert pairs(RANKED)[0]["prompt"] == list(PROMPT)


def test_options_are_trls_own_fields(folder: Path) -> None:
    import trl

    for trainer, name in alignkit_plugins.trl.step.TRAINERS.items():
        config = getattr(trl, f"{name}Config")
        assert set(config.__dataclass_fields__) <= config_fields(trainer)
    for options, message in (
        ({"betta": 1}, "DPOConfig has no field 'betta'\ndid you mean 'beta'"),
        ({"learning_rate": 1}, "'learning_rate' cannot be set here"),
        ({"num_train_epochs": 4}, "'num_train_epochs' cannot be set here: set the stage's epochs"),
    ):
        with pytest.raises(RecipeError, match=message):
            load(folder, d=stage("dpo", **options))
    with pytest.raises(RecipeError, match="must be 'sft', 'dpo' or 'reward', got 'ppo'"):
        load(folder, d=stage("ppo"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "demos.jsonl"}, "trl learns from pairs of a better and a worse response"),
        (
            {"algorithm": {"trl": {"trainer": "dpo", "loss_type": "nonsense"}}},
            "DPOTrainer rejected",
        ),
        (
            {"algorithm": {"trl": {"trainer": "sft"}}},
            "with the prompt 'how are you, 0' has 3 responses, all of which",
        ),
        (
            {"data": [{"path": "pairs.jsonl", "validation": 0.5}]},
            "does not support 'validation' in 'data'",
        ),
        (
            {"data": [{"path": "pairs.jsonl", "meta": {"weight": 0.5}}]},
            "does not support weights of rows",
        ),
        (
            {"algorithm": {"trl": {"trainer": "dpo", "beta": 1e38}}, "learning_rate": 1.0},
            "not finite",
        ),
    ],
)
def test_what_trl_cannot_do_is_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises((RunFailed, DataError), match=message):
        run_recipe(load(folder, d={**stage("dpo"), **change}), folder / "out")
    assert not (folder / "out" / "d" / "adapter").exists()


@pytest.mark.parametrize(
    ("trainer", "change", "message"),
    [
        ("dpo", {"reference": "base"}, "trl does not support 'reference'"),
        (
            "dpo",
            {"mix": {"data": "demos.jsonl", "objective": "sft", "weight": 1}},
            "trl does not support 'mix'",
        ),
        ("dpo", {"validation": "pairs.jsonl"}, "trl does not support 'validation'"),
        (
            "dpo",
            {"data": {"path": "pairs.jsonl", "validation": 0.5}},
            "trl does not support 'data.validation'",
        ),
        ("sft", {"keep_versions": True}, "trl does not support 'keep_versions'"),
    ],
)
def test_keys_that_would_change_nothing_are_refused(
    folder: Path, trainer: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        load(folder, d={**stage(trainer), **change})


def test_whole_models_are_refused_before_the_first_stage(folder: Path) -> None:
    recipe = load(folder, d=stage("dpo"))
    recipe = load_recipe(recipe.path, ["model.lora=none"])
    with pytest.raises(RecipeError, match="needs LoRA on an unquantized base"):
        run_recipe(recipe, folder / "out")
    assert not (folder / "out" / "sft" / "adapter").exists()


def test_other_options_of_trls_are_another_stage(folder: Path) -> None:
    run_recipe(load(folder, d=stage("dpo", beta=0.1)), folder / "out")
    first = weights(folder, "d")
    run_recipe(load(folder, d=stage("dpo", beta=50.0)), folder / "out")
    assert any(not tensor.equal(first[name]) for name, tensor in weights(folder, "d").items())


def test_turns_of_a_demonstration_are_learned_each_behind_what_was_said_before() -> None:
    turns = (
        {"role": "assistant", "content": "a", "train": False},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
    )
    found = demonstrations(Group(PROMPT, (Response(messages=turns),)))
    said = [*PROMPT, {"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    assert found == [{"prompt": said, "completion": [{"role": "assistant", "content": "c"}]}]
    several = Group(PROMPT, (Response(messages=turns), Response(text="d")), (Pair(0, 1),))
    with pytest.raises(DataError, match="to 'how are you' has several turns"):
        pairs(several)
    one = Group(PROMPT, (Response(messages=turns[2:]), Response(text="d")), (Pair(0, 1, margin=2),))
    assert (
        pairs(one)[0]["chosen"] == [{"role": "assistant", "content": "c"}]
        and pairs(one)[0]["margin"] == 2.0
    )


def test_warming_up_all_the_way(folder: Path) -> None:
    run_recipe(load(folder, d=stage("dpo") | {"warmup_ratio": 1.0, "max_steps": 4}), folder / "out")
    logged = [
        json.loads(line)
        for line in (folder / "out" / "d" / "metrics.jsonl").read_text().splitlines()
    ]
    rates = [row["learning_rate"] for row in logged if "loss" in row]
    assert rates == pytest.approx([0.0, 0.0025, 0.005, 0.0075])


def test_values_are_checked_before_the_first_stage(folder: Path) -> None:
    with pytest.raises(RecipeError, match="stage 'd': trl: beta: 'abc': Input should be a valid"):
        run_recipe(load(folder, d=stage("dpo", beta="abc")), folder / "out")
    assert not (folder / "out" / "sft" / "adapter").exists()


@pytest.mark.parametrize("trainer", ["reward", "dpo", "sft"])
def test_rows_that_trl_leaves_out_for_their_length_are_counted(
    folder: Path, capsys: pytest.CaptureFixture[str], trainer: str
) -> None:
    """Two of six prompts alone exceed max_length."""
    name = "demos.jsonl" if trainer == "sft" else "pairs.jsonl"
    long = ({"role": "user", "content": "how are you? " * 40},)
    groups = [replace(g, prompt=long) if int(g.id) < 2 else g for g in read_groups(folder / name)]
    write_groups(folder / name, groups)
    recipe = load(folder, trained={**stage(trainer), "from": "base"})
    run_recipe(replace(recipe, stages={"trained": recipe.stages["trained"]}), folder / "out")
    summary = json.loads((folder / "out" / "trained" / "stage.json").read_text())["summary"]
    each = 1 if trainer == "sft" else 2
    assert (summary["rows"], summary["too_long"]) == (4 * each, 2 * each)
    assert f"TRL left out {2 * each} of {6 * each} rows" in " ".join(
        capsys.readouterr().err.split()
    )


def test_weights_are_refused_because_trl_draws_its_own_rows(folder: Path) -> None:
    entry = [{"path": "demos.jsonl", "weight": 2}, {"path": "demos.jsonl", "weight": 1}]
    recipe = load(folder, trained={**stage("sft"), "from": "base", "data": entry})
    with pytest.raises(RunFailed, match="does not support weights of rows"):
        run_recipe(replace(recipe, stages={"trained": recipe.stages["trained"]}), folder / "out")


def test_one_of_several_gpus_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one would double batch_size, and wrap the model."""
    import trl

    made, used = trl.SFTConfig.__post_init__, []
    original = trl.SFTTrainer.__init__

    def two_gpus(self: Any) -> None:
        made(self)
        self._n_gpu = 2

    def trainer(self: Any, *given: Any, args: Any, **more: Any) -> None:
        used.append((args.n_gpu, args.train_batch_size))
        original(self, *given, args=args, **more)

    monkeypatch.setattr(trl.SFTConfig, "__post_init__", two_gpus)
    monkeypatch.setattr(trl.SFTTrainer, "__init__", trainer)
    run_recipe(load(folder, align=stage("sft")), folder / "out")
    assert used == [(1, 2)]
