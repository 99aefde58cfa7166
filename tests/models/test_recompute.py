"""Layers that are computed a second time in the backward pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, WAYS, make, ragged
from policies import recomputed_layers
from torch import Tensor

from alignkit.contract.settings import LoraSpec
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.layout import GroupSpan
from alignkit.models.adapters import ACTIVE
from alignkit.models.packing import pack
from alignkit.models.shared_model import UNMODIFIED
from alignkit.testing.tiny import add_noise
from tests.models.tiny import shared

# Every way with one architecture, and two architectures with one way; `make slow` has all pairs.
QUICK = {*(("Llama", way) for way in WAYS), ("Gemma2", "split responses"), ("DeepseekV2", "tiles")}
PAIRS = [
    pytest.param(name, way, marks=() if (name, way) in QUICK else pytest.mark.slow)
    for name in ARCHITECTURES
    for way in WAYS
]


@pytest.mark.parametrize(("name", "way"), PAIRS, indirect=["way"])
def test_recomputed_layers_have_the_same_gradients(
    name: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two roles in one backward pass, which starts while another role is active and another pack was
    read last.
    """
    recomputed, policy = recomputed_layers(monkeypatch), shared(make(tmp_path, name))
    policy.add_role("new")
    policy.add_role("value", start="new", head="scalar")
    parameters = [p for role in ("new", "value") for p in policy.make_trainable(role).values()]
    add_noise(policy, "new", 0.05, seed=0)
    add_noise(policy, "value", 0.05, seed=1)
    packed = pack(ragged())

    def gradients() -> list[Tensor]:
        before = policy.hidden("new", packed.layout, packed.tokens)[packed.before]
        logprobs, *_ = policy.logprobs("new", before, packed.targets)
        values = policy.scalars(
            "value", policy.hidden("value", packed.layout, packed.tokens)[packed.before]
        )
        loss = (logprobs * torch.arange(len(logprobs)) + values.square()).sum()
        policy.hidden(UNMODIFIED, TreeLayout([GroupSpan(0, 4, ())]), packed.tokens[:4])
        found = torch.autograd.grad(loss, parameters)
        assert ACTIVE.get() is None
        return list(found)

    kept = gradients()
    assert not recomputed and all(gradient.any() for gradient in kept)
    monkeypatch.setattr("alignkit.models.memory.total", lambda device: 0.0)
    torch.testing.assert_close(gradients(), kept)
    layers = 3 * policy.model.config.num_hidden_layers  # two roles, and the pass of the base
    assert len(recomputed) == layers
    with torch.no_grad():
        assert not policy.hidden("new", packed.layout, packed.tokens).requires_grad
    assert len(recomputed) == layers


@pytest.mark.parametrize("lora", [LoraSpec(r=2), None])
def test_activation_checkpointing_recomputes_each_layer_for_the_same_gradients(
    lora: LoraSpec | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, packed = make(tmp_path, "Llama"), pack(ragged())
    recomputed = recomputed_layers(monkeypatch)

    def learned(checkpointing: bool) -> tuple[list[Tensor], int]:
        model = shared(folder, lora=lora, activation_checkpointing=checkpointing)
        model.add_role("new")
        parameters = [p for name, p in model.make_trainable("new").items() if "lm_head" not in name]
        hidden = model.hidden("new", packed.layout, packed.tokens)
        return list(torch.autograd.grad(hidden.square().sum(), parameters)), len(recomputed)

    (plain, none), (again, some) = learned(False), learned(True)
    assert (none, some) == (0, 2)
    assert all(map(torch.equal, again, plain))
