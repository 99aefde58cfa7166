"""TRL's DPO trainer as a stage: it is built and trained a few steps, so that a TRL that changes is
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

from alignkit import Group, Pair, Response, RunFailed
from alignkit.data.group import read_groups, write_groups
from alignkit.errors import DataError, RecipeError
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import run_recipe
from alignkit_plugins.trl.step import check_reference, pairs

PROMPT = ({"role": "user", "content": "how are you"},)
ANSWERS = tuple(Response(text=text) for text in ("I am well, thank you", "go away", "fine"))
RANKED = Group(PROMPT, ANSWERS, (Pair(0, 1), Pair(2, 0, p=0.2), Pair(1, 2, p=0.5)), id="g")


def stage(**options: Any) -> dict[str, Any]:
    common = {"algorithm": {"trl": options}, "from": "sft", "batch_size": 2}
    return common | {
        "data": "pairs.jsonl",
        "max_steps": 3,
        "max_length": 128,
        "learning_rate": 0.01,
    }


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


def test_it_starts_where_the_stage_does_and_leaves_an_adapter(folder: Path) -> None:
    after = {"algorithm": "reward_model", "from": "trained", "data": "pairs.jsonl", "batch_size": 6}
    run_recipe(load(folder, trained=stage(), after=after), folder / "out")
    before, trained, later = (weights(folder, name) for name in ("sft", "trained", "after"))
    assert before.keys() == trained.keys()
    moved = [float((trained[name] - before[name]).abs().max()) for name in before]
    # Three steps of 0.01 from the SFT adapter, not from a fresh one, which has a zero B and a
    # random A.
    assert 0 < max(moved) < 0.05
    next_moved = [float((later[name] - trained[name]).abs().max()) for name in before]
    assert 0 < max(next_moved) < 0.05
    logged = [
        json.loads(line)
        for line in (folder / "out" / "trained" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [row["loss"] for row in logged if "loss" in row]
    summary = json.loads((folder / "out" / "trained" / "stage.json").read_text())["summary"]
    assert len(losses) == summary["steps"]
    # Policy and reference are the same at first
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3) and losses[1] < losses[0]


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
    del parameters["x.ref.w"]
    with pytest.raises(RunFailed, match="reference"):
        check_reference(trainer)


def test_pairs() -> None:
    found = [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in pairs(RANKED)]
    # P = 0.2 turns a pair, 0.5 drops it
    assert found == [(ANSWERS[0].text, "go away"), (ANSWERS[0].text, "fine")]
    assert pairs(RANKED)[0]["prompt"] == list(PROMPT)


def test_options_are_trls_own_fields(folder: Path) -> None:
    for options, message in (
        ({"betta": 1}, "DPOConfig has no field 'betta'\ndid you mean 'beta'"),
        ({"learning_rate": 1}, "'learning_rate' cannot be set here"),
    ):
        with pytest.raises(RecipeError, match=message):
            load(folder, d=stage(**options))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "demos.jsonl"}, "trl learns from pairs of a better and a worse response"),
        (
            {"algorithm": {"trl": {"loss_type": "nonsense"}}},
            "DPOTrainer rejected",
        ),
        (
            {"data": [{"path": "pairs.jsonl", "validation": 0.5}]},
            "does not support weights of rows, or 'validation' in 'data'",
        ),
        (
            {"data": [{"path": "pairs.jsonl", "meta": {"weight": 0.5}}]},
            "does not support weights of rows",
        ),
        (
            {"algorithm": {"trl": {"beta": 1e38}}, "learning_rate": 1.0},
            "not finite",
        ),
    ],
)
def test_what_trl_cannot_do_is_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises((RunFailed, DataError), match=message):
        run_recipe(load(folder, d={**stage(), **change}), folder / "out")
    assert not (folder / "out" / "d" / "adapter").exists()


def test_keys_that_would_change_nothing_are_refused(folder: Path) -> None:
    for key, value in {
        "reference": "base",
        "mix": {"data": "demos.jsonl", "objective": "sft", "weight": 1},
        "validation": "pairs.jsonl",
        "keep_versions": True,
    }.items():
        with pytest.raises(RecipeError, match=f"trl does not support '{key}'"):
            load(folder, d={**stage(), key: value})


def test_whole_models_are_refused_before_the_first_stage(folder: Path) -> None:
    recipe = load(folder, d=stage())
    recipe = load_recipe(recipe.path, ["model.lora=none"])
    with pytest.raises(RecipeError, match="needs LoRA on an unquantized base"):
        run_recipe(recipe, folder / "out")
    assert not (folder / "out" / "sft" / "adapter").exists()


def test_other_options_of_trls_are_another_stage(folder: Path) -> None:
    run_recipe(load(folder, d=stage(beta=0.1)), folder / "out")
    first = weights(folder, "d")
    run_recipe(load(folder, d=stage(beta=50.0)), folder / "out")
    assert any(not tensor.equal(first[name]) for name, tensor in weights(folder, "d").items())


def test_responses_of_several_turns_are_refused() -> None:
    turns = (
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
    )
    several = Group(PROMPT, (Response(messages=turns), Response(text="d")), (Pair(0, 1),))
    with pytest.raises(DataError, match="to 'how are you' has several turns"):
        pairs(several)


def test_warming_up_all_the_way(folder: Path) -> None:
    run_recipe(load(folder, d=stage() | {"warmup_ratio": 1.0, "max_steps": 4}), folder / "out")
    logged = [
        json.loads(line)
        for line in (folder / "out" / "d" / "metrics.jsonl").read_text().splitlines()
    ]
    rates = [row["learning_rate"] for row in logged if "loss" in row]
    assert rates == pytest.approx([0.0, 0.0025, 0.005, 0.0075])


def test_rows_that_trl_leaves_out_for_their_length_are_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of six prompts alone exceed max_length."""
    long = ({"role": "user", "content": "how are you? " * 40},)
    rows = read_groups(folder / "pairs.jsonl")
    groups = [replace(g, prompt=long) if int(g.id) < 2 else g for g in rows]
    write_groups(folder / "pairs.jsonl", groups)
    recipe = load(folder, trained={**stage(), "from": "base"})
    run_recipe(replace(recipe, stages={"trained": recipe.stages["trained"]}), folder / "out")
    summary = json.loads((folder / "out" / "trained" / "stage.json").read_text())["summary"]
    assert summary["rows"] == 8
    assert "TRL left out 4 of 12 rows" in " ".join(capsys.readouterr().err.split())


def test_one_of_several_gpus_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one would double batch_size, and wrap the model."""
    import trl

    made, used = trl.DPOConfig.__post_init__, []
    original = trl.DPOTrainer.__init__

    def two_gpus(self: Any) -> None:
        made(self)
        self._n_gpu = 2

    def trainer(self: Any, *given: Any, args: Any, **more: Any) -> None:
        used.append((args.n_gpu, args.train_batch_size))
        original(self, *given, args=args, **more)

    monkeypatch.setattr(trl.DPOConfig, "__post_init__", two_gpus)
    monkeypatch.setattr(trl.DPOTrainer, "__init__", trainer)
    run_recipe(load(folder, align=stage()), folder / "out")
    assert used == [(1, 2)]
