"""Each process holds a part of the weights: how much memory that takes, and what cannot be cut."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import run_together, together
from several import offline, online, write_recipe
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from alignkit.training.learner import Learner
from alignkit_plugins.processes.sharded_forward import LockstepPasses, can_learn

pytestmark = pytest.mark.usefixtures("one_thread")

PADDING = 1.01  # what parts of weights are filled up by, whose rows cannot be shared out evenly
FULL = {"base": "tiny", "dtype": "float32", "lora": "none"}


def note(what: str, tensors: Iterable[torch.Tensor]) -> None:
    """Write down the share of these tensors' bytes that this process holds."""
    held, whole = dict[int, int](), 0
    for tensor in tensors:
        storage = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).untyped_storage()
        held[storage.data_ptr() or -len(held)] = storage.nbytes()  # gradients of a layer share one
        whole += tensor.numel() * tensor.element_size()
    with Path(f"notes-{os.environ.get('RANK')}").open("a") as file:
        file.write(json.dumps([what, sum(held.values()) / whole]) + "\n")


def noted(rank: int) -> dict[str, list[float]]:
    shares: dict[str, list[float]] = {}
    for line in Path(f"notes-{rank}").read_text().splitlines():
        what, share = json.loads(line)
        shares.setdefault(what, []).append(share)
    return shares


def base_of(network: Any) -> list[torch.Tensor]:
    return [p for name, p in network.named_parameters() if "lora_" not in name]


def test_a_process_holds_its_part_between_passes_and_only_samples_with_the_whole(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer_call = GradientCheckpointingLayer.__call__
    settle, gather = LockstepPasses.settle, LockstepPasses.gather
    networks: list[Any] = []

    def settled(self: LockstepPasses) -> None:
        settle(self)
        networks[:] = [self.model.model] if self.spread else []
        if networks:
            note("between", base_of(networks[0]))

    def gathered(self: LockstepPasses, role: str) -> None:
        gather(self, role)
        note("sampling", base_of(self.model.model))

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = layer_call(self, *args, **kwargs)
        if networks and sys._getframe(1).f_code.co_name != "generate":
            note("layer", base_of(network := networks[0]))
            if result.requires_grad:
                result.register_hook(lambda gradient: note("backward", base_of(network)))
        return result

    monkeypatch.setattr(LockstepPasses, "settle", settled)
    monkeypatch.setattr(LockstepPasses, "gather", gathered)
    monkeypatch.setattr(GradientCheckpointingLayer, "__call__", called)
    stages = {"sft": offline("sft", "demos"), "align": online("grpo", iterations=1)}
    run_together(work, write_recipe(stages), "out", sharded=True)
    for shares in map(noted, range(2)):
        assert len(shares["between"]) > 20 and max(shares["between"]) <= PADDING / 2
        assert max(shares["layer"]) < 0.75, "embeddings are whole during a pass, layers are not"
        assert max(shares["backward"]) < 0.95, "one layer"
        assert min(shares["sampling"]) >= 1.0


@pytest.mark.skipif(not can_learn(), reason="this torch cannot cut weights that learn")
def test_a_process_holds_its_part_of_weights_gradients_and_moments(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle, step = LockstepPasses.settle, Learner.step

    def settled(self: LockstepPasses) -> None:
        settle(self)
        if self.spread:
            models = [role.model for role in self.model.roles.values()]
            note("weights", [p for model in models for p in model.parameters()])

    def stepped(self: Learner, *args: Any) -> Any:
        metrics = step(self, *args)
        note("gradients", [p.grad for p in self.parameters.values() if p.grad is not None])
        states = self.optimizer.state.values()
        note("moments", [value for state in states for value in state.values() if value.dim()])
        return metrics

    monkeypatch.setattr(LockstepPasses, "settle", settled)
    monkeypatch.setattr(Learner, "step", stepped)
    stages = {"sft": offline("sft", "demos"), "dpo": {**offline("dpo", "pairs"), "from": "sft"}}
    run_together(work, write_recipe(stages, FULL), "out", sharded=True)
    for shares in map(noted, range(2)):
        assert shares.keys() == {"weights", "gradients", "moments"}
        assert all(max(each) <= PADDING / 2 for each in shares.values()), shares


@pytest.mark.parametrize(
    ("model", "override", "said"),
    [
        (FULL, "stages.sft.optimizer=adamw_8bit", "'adamw_8bit' cannot train weights that are cut"),
        (None, "model.quantization=nf4", "a quantized base model cannot be cut into parts"),
    ],
)
def test_a_base_that_cannot_be_cut_is_refused_before_anything_is_written(
    work: Path, model: Any, override: str, said: str
) -> None:
    recipe = write_recipe({"sft": offline("sft", "demos")}, model)
    leader, other = together(work, ["run", recipe, override, "--out", "out"], sharded=True)
    assert leader.code and other.code and not Path("out").exists()
    assert said in leader.err and f"override '{override}'" in leader.err
