"""TRL's DPO trainer as a stage: it is built and trained a few steps, so that a TRL that changes is
noticed here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import yaml
from safetensors.torch import load_file

from alignkit import Group, Pair, Response, RunFailed
from alignkit.errors import DataError, RecipeError, Stopped
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import run_recipe
from alignkit.runs.signals import request_stop
from alignkit_plugins.trl.step import TRL, check_reference, pair_rows, pairs, progress
from tests.rows import assistant, read_rows, user, write_recipe, write_rows

PROMPT = (user("how are you"),)
ANSWERS = tuple(Response(text=text) for text in ("I am well, thank you", "go away", "fine"))
RANKED = Group(PROMPT, ANSWERS, (Pair(0, 1), Pair(2, 0, p=0.2), Pair(1, 2, p=0.5)), id="g")
SFT = {"algorithm": "sft", "data": "demos.jsonl", "learning_rate": 0.1, "batch_size": 2}
STAGE = yaml.safe_load("""
{from: base, batch_size: 2, data: pairs.jsonl, max_steps: 3, max_length: 128, learning_rate: 0.01}
""")


def load(
    folder: Path, options: Any = None, *, sft: Any = None, length: int = 1, **more: Any
) -> Any:
    """A recipe with a stage `d` of TRL on six prompts, of which two may be longer."""
    groups = []
    for number in range(6):
        asked = f"how are you, {number} " * (length if number < 2 else 1)
        groups.append(replace(RANKED, id=str(number), prompt=(user(asked),)))
    write_rows(folder / "pairs.jsonl", groups)
    stage = {"algorithm": {"trl": options or {}}, **STAGE, **more}
    stages = {"sft": sft, "d": stage} if sft else {"d": stage}
    return load_recipe(write_recipe(folder, stages))


def weights(folder: Path, stage: str = "d") -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / stage / "adapter" / "adapter_model.safetensors")


def moved(before: Any, after: Any) -> float:
    assert before.keys() == after.keys()
    return max(float((after[name] - before[name]).abs().max()) for name in before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Any]]]:
    """A stage after SFT that warms up all the way, on a machine that seems to have two GPUs, and
    what TRL was made with.
    """
    import trl

    folder, used = tmp_path_factory.mktemp("trl"), list[Any]()
    made, original = trl.DPOConfig.__post_init__, trl.DPOTrainer.__init__

    def two_gpus(self: Any) -> None:
        made(self)
        self._n_gpu = 2

    def trainer(self: Any, *given: Any, args: Any, **more: Any) -> None:
        schedule = args.lr_scheduler_type, args.lr_scheduler_kwargs
        used.append((args.n_gpu, args.train_batch_size, args.seed, *schedule))
        original(self, *given, args=args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trl.DPOConfig, "__post_init__", two_gpus)
        patch.setattr(trl.DPOTrainer, "__init__", trainer)
        keys = {"from": "sft", "warmup_ratio": 1.0, "max_steps": 4}
        schedule = {"cosine_with_min_lr": {"min_lr": 1e-3}}
        recipe = load(folder, sft=SFT, lr_scheduler_type=schedule, **keys)
        run_recipe(replace(recipe, seed=5), folder / "out")
    yield folder, used


def test_it_starts_where_the_stage_does_and_leaves_an_adapter(trained: Any) -> None:
    folder, _ = trained
    # A few steps of 0.01 from the SFT adapter, not from a fresh one, which has a zero B and a
    # random A.
    assert 0 < moved(weights(folder, "sft"), weights(folder)) < 0.05
    logged = [row for row in read_rows(folder / "out" / "d" / "metrics.jsonl") if "loss" in row]
    summary = json.loads((folder / "out" / "d" / "stage.json").read_text())["summary"]
    assert len(logged) == summary["steps"] == 4 and summary["rows"] == 12
    # Policy and reference are the same at first
    losses = [row["loss"] for row in logged]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3) and losses[3] < losses[0]
    rates = [row["learning_rate"] for row in logged]
    assert rates == pytest.approx([0.0, 0.0025, 0.005, 0.0075])


def test_one_of_several_gpus_is_used(trained: Any) -> None:
    """A second one would double batch_size, and wrap the model. Seed and schedule are the
    recipe's.
    """
    assert trained[1] == [(1, 2, 5, "cosine_with_min_lr", {"min_lr": 1e-3})]


def test_the_reference_is_checked() -> None:
    parameters = {"x.default.w": torch.ones(2), "x.ref.w": torch.ones(2)}
    model = SimpleNamespace(named_parameters=lambda: parameters.items())
    accelerator = SimpleNamespace(unwrap_model=lambda m: m)
    trainer = SimpleNamespace(model=model, accelerator=accelerator)
    check_reference(trainer)
    for wrong in ({"x.ref.w": torch.zeros(2)}, {"x.ref.w": None}):
        parameters |= wrong
        with pytest.raises(RunFailed, match="reference"):
            check_reference(trainer)


def test_pairs() -> None:
    found = [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in pairs(RANKED)]
    # P = 0.2 turns a pair, 0.5 drops it
    assert found == [(ANSWERS[0].text, "go away"), (ANSWERS[0].text, "fine")]
    assert pairs(RANKED)[0]["prompt"] == list(PROMPT)
    turns = Response(messages=(assistant("a"), user("b"), assistant("c")))
    with pytest.raises(DataError, match="to 'how are you' has several turns"):
        pairs(Group(PROMPT, (turns, Response("d")), (Pair(0, 1),)))
    call: Any = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add"}}]}
    calls = Group(PROMPT, (Response(messages=(call,)), Response("d")), (Pair(0, 1),))
    for with_tools in (calls, replace(RANKED, tools=({"name": "add"},))):
        with pytest.raises(DataError, match="'how are you' has tools, which TRL would not get"):
            pairs(with_tools)
    stage: Any = SimpleNamespace(name="d", settings=SimpleNamespace(data=None))
    for weights, weight in (([1.0], 1.0), (None, 0.5)):
        groups = [replace(RANKED, weight=weight), RANKED]
        loaded = SimpleNamespace(weights=weights, groups=groups, validation=[])
        stage.load = lambda data, loaded=loaded: loaded
        with pytest.raises(RunFailed, match="does not support weights of rows"):
            pair_rows(stage)


def test_what_trl_logs_is_the_stages() -> None:
    stage, metrics, state = Mock(), Mock(), SimpleNamespace(global_step=3)
    stage.name = "d"
    callback = progress(stage, metrics)
    callback.on_log(None, state, None, {"loss": 0.5, "mode": "train"})
    metrics.write.assert_called_once_with(3, loss=0.5)
    with pytest.raises(RunFailed, match="grad_norm is not finite at step 3"):
        callback.on_log(None, state, None, {"loss": 0.5, "grad_norm": math.inf})


# TRL's options, keys of the stage, and why they are refused.
REFUSED = yaml.safe_load("""
- [{betta: 1}, {}, "DPOConfig has no field 'betta'\\ndid you mean 'beta'"]
- [{learning_rate: 1}, {}, "'learning_rate' cannot be set here"]
- [{}, {reference: base}, trl does not support 'reference']
- [{}, {mix: {data: demos.jsonl, objective: sft, weight: 1}}, trl does not support 'mix']
- [{}, {validation: pairs.jsonl}, trl does not support 'validation']
- [{}, {keep_versions: true}, trl does not support 'keep_versions']
""")


@pytest.mark.parametrize(("options", "keys", "message"), REFUSED)
def test_what_would_change_nothing_is_refused(
    tmp_path: Path, options: Any, keys: Any, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        load(tmp_path, options, **keys)


UNABLE = yaml.safe_load("""
- [{}, {data: demos.jsonl}, trl learns from pairs of a better and a worse response]
- [{loss_type: nonsense}, {}, DPOTrainer rejected]
- [{}, {data: [{path: pairs.jsonl, validation: 0.5}]}, "does not support weights of rows, or 'validation' in 'data'"]
- [{}, {data: [{path: pairs.jsonl, meta: {weight: 0.5}}]}, does not support weights of rows]
- [{beta: 1.0e+38}, {learning_rate: 1.0}, not finite]
""")


@pytest.mark.parametrize(("options", "keys", "message"), UNABLE)
def test_what_trl_cannot_do_is_refused(
    tmp_path: Path, options: Any, keys: Any, message: str
) -> None:
    with pytest.raises((RunFailed, DataError), match=message):
        run_recipe(load(tmp_path, options, **keys), tmp_path / "out")
    assert not (tmp_path / "out" / "d" / "adapter").exists()


def test_a_run_that_is_stopped_takes_no_more_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trl

    made, steps = trl.DPOTrainer.training_step, list[Any]()

    def step(self: Any, *given: Any) -> Any:
        steps.append(given)
        request_stop("a test")
        return made(self, *given)

    monkeypatch.setattr(trl.DPOTrainer, "training_step", step)
    with pytest.raises(Stopped):
        run_recipe(load(tmp_path), tmp_path / "out")
    assert len(steps) == 1


def test_whole_models_are_refused_before_the_first_stage(tmp_path: Path) -> None:
    recipe = load_recipe(load(tmp_path, sft=SFT).path, ["model.lora=none"])
    with pytest.raises(RecipeError, match="needs LoRA on an unquantized base"):
        run_recipe(recipe, tmp_path / "out")
    assert not (tmp_path / "out" / "sft" / "adapter").exists()
    quantized: Any = SimpleNamespace(lora="r: 4", quantization="nf4")
    with pytest.raises(RunFailed, match="on an unquantized base"):
        TRL(TRL.Options()).check_model(quantized)


def test_rows_that_trl_leaves_out_for_their_length_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of six prompts alone exceed max_length. Other options of TRL's are another stage."""
    run_recipe(load(tmp_path, {"beta": 0.1}, length=40), tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "d" / "stage.json").read_text())["summary"]
    assert summary["rows"] == 8
    assert "TRL left out 4 of 12 rows" in " ".join(capsys.readouterr().err.split())
    first = weights(tmp_path)
    run_recipe(load(tmp_path, {"beta": 50.0}, length=40), tmp_path / "out")
    assert moved(first, weights(tmp_path)) > 0
