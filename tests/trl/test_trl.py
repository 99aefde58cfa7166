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
from safetensors.torch import load_file

from alignkit import Group, Pair, Response, RunFailed
from alignkit.errors import DataError, RecipeError
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import run_recipe
from alignkit_plugins.trl.step import check_reference, pairs
from tests.rows import assistant, read_rows, user, write_recipe, write_rows

PROMPT = (user("how are you"),)
ANSWERS = tuple(Response(text=text) for text in ("I am well, thank you", "go away", "fine"))
RANKED = Group(PROMPT, ANSWERS, (Pair(0, 1), Pair(2, 0, p=0.2), Pair(1, 2, p=0.5)), id="g")
LEARN = {"learning_rate": 0.01, "batch_size": 2}
SFT = {"algorithm": "sft", "data": "demos.jsonl", **LEARN}


def stage(**options: Any) -> dict[str, Any]:
    plain = {"algorithm": {"trl": options}, "from": "sft", "data": "pairs.jsonl"}
    return {**plain, "max_steps": 3, "max_length": 128, **LEARN}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    groups = [replace(RANKED, id=str(n), prompt=(user(f"how are you, {n}"),)) for n in range(6)]
    write_rows(tmp_path / "pairs.jsonl", groups)
    answered = [Response(text=f"I am well, {n}") for n in range(6)]
    both = zip(groups, answered, strict=True)
    demos = [replace(group, responses=(answer,), pairs=None) for group, answer in both]
    write_rows(tmp_path / "demos.jsonl", demos)
    return tmp_path


def load(folder: Path, **stages: Any) -> Any:
    return load_recipe(write_recipe(folder, {"sft": SFT, **stages}))


def weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / stage / "adapter" / "adapter_model.safetensors")


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """The largest change of a weight."""
    assert before.keys() == after.keys()
    return max(float((after[name] - before[name]).abs().max()) for name in before)


def logged(folder: Path, stage: str, key: str) -> list[float]:
    rows = read_rows(folder / "out" / stage / "metrics.jsonl")
    return [row[key] for row in rows if "loss" in row]


def test_it_starts_where_the_stage_does_and_leaves_an_adapter(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one of several GPUs: a second one would double batch_size, and wrap the model."""
    import trl

    configured, started, used = trl.DPOConfig.__post_init__, trl.DPOTrainer.__init__, []

    def two_gpus(self: Any) -> None:
        configured(self)
        self._n_gpu = 2

    def trainer(self: Any, *given: Any, args: Any, **more: Any) -> None:
        used.append((args.n_gpu, args.train_batch_size))
        started(self, *given, args=args, **more)

    monkeypatch.setattr(trl.DPOConfig, "__post_init__", two_gpus)
    monkeypatch.setattr(trl.DPOTrainer, "__init__", trainer)
    after = {"algorithm": "reward_model", "from": "trained", "data": "pairs.jsonl", "batch_size": 6}
    other = stage(beta=50.0) | {"warmup_ratio": 1.0}
    run_recipe(load(folder, trained=stage(), after=after, other=other), folder / "out")
    sft, trained, later = (weights(folder, name) for name in ("sft", "trained", "after"))
    # Three steps of 0.01 from the adapter before, not from a fresh one, whose A is random.
    assert 0 < moved(sft, trained) < 0.05 and 0 < moved(trained, later) < 0.05
    losses = logged(folder, "trained", "loss")
    record = json.loads((folder / "out" / "trained" / "stage.json").read_text())
    assert len(losses) == record["summary"]["steps"] == 3
    # Policy and reference are the same at first
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3) and losses[1] < losses[0]
    assert moved(trained, weights(folder, "other")) > 0
    assert logged(folder, "other", "learning_rate") == pytest.approx([0.0, 0.01 / 3, 0.02 / 3])
    assert used == [(1, 2)] * 2


def test_the_reference_is_checked() -> None:
    parameters = {"x.default.w": torch.ones(2), "x.ref.w": torch.ones(2)}
    model = SimpleNamespace(named_parameters=lambda: parameters.items())
    accelerator = SimpleNamespace(unwrap_model=lambda m: m)
    trainer = SimpleNamespace(model=model, accelerator=accelerator, beta=0.1)
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
    turns = (assistant("a"), user("b"), assistant("c"))
    several = Group(PROMPT, (Response(messages=turns), Response(text="d")), (Pair(0, 1),))
    with pytest.raises(DataError, match="to 'how are you' has several turns"):
        pairs(several)


MIX = {"data": "demos.jsonl", "objective": "sft", "weight": 1}
OF_A_RECIPE: list[tuple[dict[str, Any], str]] = [
    (stage(betta=1), "DPOConfig has no field 'betta'\ndid you mean 'beta'"),
    (stage(learning_rate=1), "'learning_rate' cannot be set here"),
    (stage() | {"reference": "base"}, "trl does not support 'reference'"),
    (stage() | {"mix": MIX}, "trl does not support 'mix'"),
    (stage() | {"validation": "pairs.jsonl"}, "trl does not support 'validation'"),
    (stage() | {"keep_versions": True}, "trl does not support 'keep_versions'"),
]


@pytest.mark.parametrize(("wrong", "message"), OF_A_RECIPE)
def test_keys_that_would_change_nothing_are_refused(folder: Path, wrong: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(folder, d=wrong)


WEIGHTED = {"path": "pairs.jsonl", "meta": {"weight": 0.5}}
OF_A_RUN: list[tuple[dict[str, Any], str]] = [
    ({"data": "demos.jsonl"}, "trl learns from pairs of a better and a worse response"),
    ({"algorithm": {"trl": {"loss_type": "nonsense"}}}, "DPOTrainer rejected"),
    ({"data": [{"path": "pairs.jsonl", "validation": 0.5}]}, "does not support.*'validation'"),
    ({"data": [WEIGHTED]}, "does not support weights of rows"),
    ({"algorithm": {"trl": {"beta": 1e38}}, "learning_rate": 1.0}, "not finite"),
]


@pytest.mark.parametrize(("change", "message"), OF_A_RUN)
def test_what_trl_cannot_do_is_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises((RunFailed, DataError), match=message):
        run_recipe(load(folder, d={**stage(), **change}), folder / "out")
    assert not (folder / "out" / "d" / "adapter").exists()


def test_whole_models_are_refused_before_the_first_stage(folder: Path) -> None:
    recipe = load_recipe(load(folder, d=stage()).path, ["model.lora=none"])
    with pytest.raises(RecipeError, match="needs LoRA on an unquantized base"):
        run_recipe(recipe, folder / "out")
    assert not (folder / "out" / "sft").exists()


def test_rows_that_trl_leaves_out_for_their_length_are_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of six prompts alone exceed max_length."""
    texts = ["how are you? " * 40 if n < 2 else f"how are you, {n}" for n in range(6)]
    write_rows(folder / "pairs.jsonl", [replace(RANKED, prompt=(user(text),)) for text in texts])
    recipe = load(folder, trained={**stage(), "from": "base"})
    run_recipe(replace(recipe, stages={"trained": recipe.stages["trained"]}), folder / "out")
    record = json.loads((folder / "out" / "trained" / "stage.json").read_text())
    assert record["summary"]["rows"] == 8
    assert "TRL left out 4 of 12 rows" in " ".join(capsys.readouterr().err.split())
