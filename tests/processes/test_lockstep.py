"""Each process holds a part of the weights: less memory, and no process waits for one that has
failed in the middle of a pass.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forked import run_together, together
from several import PADDING, RLOO, SFT, assert_same_as_one, write_recipe
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from alignkit.training.learner import Learner
from alignkit_plugins.processes import sharded_forward
from alignkit_plugins.processes.sharded_forward import (
    LockstepCollectives,
    LockstepPasses,
    ShardedNetwork,
    can_learn,
)

pytestmark = pytest.mark.usefixtures("one_thread")
learns = pytest.mark.skipif(not can_learn(), reason="this torch cannot cut weights that learn")


def test_parts_of_a_batch_of_one_row(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves one process without a row."""
    init = ShardedNetwork.__init__

    def noted(self: Any, *args: Any) -> None:
        Path(f"cut-{os.environ['RANK']}").touch()
        init(self, *args)

    monkeypatch.setattr(ShardedNetwork, "__init__", noted)
    recipe = write_recipe(SFT, batch_size=1)
    some = "model.lora.target_modules=[q_proj]"  # the other layers are torch's own
    run_together(recipe, "parts", some, sharded=True)
    assert Path("cut-0").exists() and Path("cut-1").exists()
    assert_same_as_one(recipe, "parts", some)


def test_the_norm_of_parts_is_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    part, whole = torch.tensor([3.0]), torch.tensor([12.0])
    monkeypatch.setattr(sharded_forward, "DTensor", SimpleNamespace)
    collectives = LockstepCollectives(0, 2, torch.device("cpu"))
    monkeypatch.setattr(collectives, "sum", lambda mine: {"": mine[""] + 4.0**2})
    gradients: list[Any] = [SimpleNamespace(to_local=lambda: part), whole]
    learned: list[Any] = [SimpleNamespace(grad=gradient) for gradient in gradients]
    assert collectives.clip(learned, 1.3) == 13.0  # of 3, 4 and 12
    torch.testing.assert_close(torch.cat([part, whole]), torch.tensor([0.3, 1.2]))


def after(cls: type, name: str, monkeypatch: pytest.MonkeyPatch, then: Callable[..., Any]) -> None:
    """Let a method call `then` with its result and its object."""
    method = getattr(cls, name)

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        then(result, self)
        return result

    monkeypatch.setattr(cls, name, called)


def note(what: str, tensors: Iterable[torch.Tensor]) -> None:
    """Write down which share of some tensors' bytes is in this process. Gradients of a layer share
    their storage.
    """
    tensors = list(tensors)
    parts = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    held = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}
    share = sum(held.values()) / max(1, sum(t.numel() * t.element_size() for t in tensors))
    with Path(f"notes-{os.environ['RANK']}").open("a") as file:
        file.write(json.dumps([what, share]) + "\n")


MORE = {
    "": "align: {algorithm: grpo, from: sft, iterations: 1}",
    "lora: none": "dpo: {algorithm: dpo, from: sft, data: pairs.jsonl}",
}
# By what is noted: the least and the largest share. Embeddings are whole during a pass, layers are
# not; backward, one layer is.
HALF = (0.0, PADDING / 2)
SHARES = {
    "": {
        "between": HALF,
        "layer": (0.0, 0.75),
        "backward": (0.0, 0.95),
        "sampling": (1.0, PADDING),
    },
    "lora: none": {"between": HALF, "gradients": HALF, "moments": HALF},
}


@pytest.mark.parametrize(
    "model", ["", pytest.param("lora: none", marks=[pytest.mark.slow, learns])]
)
def test_a_process_holds_its_part_and_only_samples_with_the_whole(
    work: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    passes: list[LockstepPasses] = []

    def weights(what: str, own: LockstepPasses) -> None:
        for role in own.model.roles.values():
            named = role.model.named_parameters()
            note(what, (weight for name, weight in named if "lora_" not in name))

    def settled(_: None, own: LockstepPasses) -> None:
        passes[:] = [own] if own.holds_part else []
        if passes:
            weights("between", own)

    def called(result: torch.Tensor, _: Any) -> None:
        if passes and sys._getframe(2).f_code.co_name != "generate":
            weights("layer", own := passes[0])
            if result.requires_grad:
                result.register_hook(lambda gradient: weights("backward", own))

    def stepped(_: Any, learner: Learner) -> None:
        learned = learner.parameters.values()
        note("gradients", (p.grad for p in learned if p.grad is not None))
        states = [value for state in learner.optimizer.state.values() for value in state.values()]
        note("moments", filter(torch.Tensor.dim, states))

    after(LockstepPasses, "settle", monkeypatch, settled)
    after(LockstepPasses, "gather", monkeypatch, lambda _, own: weights("sampling", own))
    after(GradientCheckpointingLayer, "__call__", monkeypatch, called)
    after(Learner, "step", monkeypatch, stepped)
    run_together(write_recipe(f"{SFT}\n{MORE[model]}", model), "out", sharded=True)
    for rank in range(2):
        notes = [json.loads(line) for line in Path(f"notes-{rank}").read_text().splitlines()]
        for what, (least, most) in SHARES[model].items():
            shares = [share for noted, share in notes if noted == what]
            assert shares and least <= min(shares) and max(shares) <= most, what


@pytest.mark.parametrize("what", ["kill", pytest.param("memory", marks=pytest.mark.slow)])
def test_a_process_that_fails_in_the_middle_of_a_pass_ends_the_others(
    work: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """They wait for its part of the next layer."""
    layers: list[Any] = []

    def fault(_: Any, layer: Any) -> None:
        if os.environ["RANK"] == "1" and type(layer).__name__.startswith("FSDP"):
            layers.append(layer)
        if len(layers) == 8:  # of two layers: the second one of the third pass behind the first
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise MemoryError("900 GiB")

    after(GradientCheckpointingLayer, "__call__", monkeypatch, fault)
    arguments = ["run", write_recipe(SFT, epochs=3), "--out", "out"]
    leader, other = together(arguments, sharded=True)
    assert leader.code and "error: another process of the run has ended" in leader.err
    assert other.code == -9 if what == "kill" else "900 GiB" in other.err
    assert not list(Path("out").rglob("*.tmp")), "nothing half-written"


@pytest.mark.parametrize(
    ("model", "before", "after"),
    [
        ("", 2, 1),
        *(
            pytest.param("lora: none", before, after, marks=[pytest.mark.slow, learns])
            for before, after in ((1, 2), (2, 1), (2, 3))
        ),
    ],
)
def test_any_number_of_processes_continues_with_or_without_parts(
    work: Path, model: str, before: int, after: int
) -> None:
    arguments = ["run", write_recipe(RLOO, model), "--out", "out"]
    leader, *others = together(arguments, before, before > 1, FAULT="SIGTERM-0")
    assert leader.code == 75 and {other.code for other in others} <= {75, -15}
    assert list(Path("out/align/checkpoints").iterdir())
    ended = together(arguments, after, after > 1)
    assert [process.code for process in ended] == [0] * after, ended
    assert "continuing after" in Path("out/run.log").read_text()
    assert_same_as_one(Path("recipe.yaml"), "out")


@pytest.mark.parametrize(
    ("model", "override", "said"),
    [
        ("lora: none", "stages.sft.optimizer=adamw_8bit", "'adamw_8bit' cannot train weights that"),
        ("", "model.quantization=nf4", "a quantized base model cannot be cut into parts"),
    ],
)
def test_a_base_that_cannot_be_cut_is_refused_before_anything_is_written(
    work: Path, model: str, override: str, said: str
) -> None:
    recipe = write_recipe(SFT, model)
    leader, other = together(["run", recipe, override, "--out", "out"], sharded=True)
    assert leader.code and other.code
    assert said in leader.err and f"override '{override}'" in leader.err
    assert not Path("out").exists()


def test_a_batch_may_leave_a_process_without_a_row(work: Path) -> None:
    recipe = write_recipe(SFT, batch_size=2)  # 13 rows: batches of two, and one of one
    run_together(recipe, "two")
    assert_same_as_one(recipe, "two")
