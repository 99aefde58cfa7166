"""Layers that are computed a second time in the backward pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, LLAMA, WAYS, make, ragged
from policies import recomputed_layers
from torch import Tensor

from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.layout import GroupSpan
from alignkit.models.adapters import ACTIVE
from alignkit.models.packing import pack
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.settings import LoraSpec, ModelSpec

# Every way with one architecture, and every architecture with one way; `make slow` has all pairs.
PAIRS = [
    pytest.param(
        name, way, marks=() if number == 0 or place == number % len(WAYS) else pytest.mark.slow
    )
    for number, name in enumerate(ARCHITECTURES)
    for place, way in enumerate(WAYS)
]


@pytest.mark.parametrize(("name", "way"), PAIRS, indirect=["way"])
def test_recomputed_layers_have_the_same_gradients(
    name: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two roles in one backward pass, which starts while another role is active and another row was
    read last.
    """
    folder, recomputed = make(tmp_path, name), recomputed_layers(monkeypatch)
    spec = ModelSpec(
        base=str(folder), dtype="float32", lora=LoraSpec(r=2, lora_alpha=4), device="cpu"
    )
    policy = SharedModel(spec, str(folder))
    policy.add_role("new")
    policy.add_role("value", start="new", head="scalar")
    parameters = {role: policy.make_trainable(role) for role in ("new", "value")}
    with torch.no_grad():
        for number, parameter in enumerate(p for own in parameters.values() for p in own.values()):
            parameter += 0.05 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(number)
            )
    row = pack(ragged())

    def gradients() -> list[Tensor]:
        logprobs, _ = policy.logprobs(
            "new", policy.hidden("new", row.layout, row.tokens)[row.before], row.targets
        )
        values = policy.scalars("value", policy.hidden("value", row.layout, row.tokens)[row.before])
        loss = (logprobs * torch.arange(len(logprobs)) + values.square()).sum()
        policy.hidden(BASE, TreeLayout([GroupSpan(0, 4, ())]), row.tokens[:4])
        found = torch.autograd.grad(loss, [p for own in parameters.values() for p in own.values()])
        assert ACTIVE.get() is None
        return list(found)

    kept = gradients()
    assert not recomputed and all(gradient.any() for gradient in kept)
    monkeypatch.setattr("alignkit.models.memory.total", lambda device: 0.0)
    again = gradients()
    layers = 3 * policy.model.config.num_hidden_layers  # two roles, and the pass of the base
    assert len(recomputed) == layers
    for one, other in zip(again, kept, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        gradients_off = policy.hidden("new", row.layout, row.tokens)
    assert len(recomputed) == layers and not gradients_off.requires_grad


@pytest.mark.parametrize("lora", [LoraSpec(r=2), None])
def test_activation_checkpointing_stores_less_for_the_same_gradients(
    lora: LoraSpec | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in bytes that autograd keeps."""
    folder, row = make(tmp_path, "Llama"), pack(ragged() * 20)
    recomputed = recomputed_layers(monkeypatch)

    def learned(checkpointing: bool) -> tuple[list[Tensor], int, int]:
        spec = ModelSpec(
            base="b",
            dtype="float32",
            device="cpu",
            lora=lora,
            activation_checkpointing=checkpointing,
        )
        model = SharedModel(spec, str(folder))
        model.add_role("new")
        parameters = [p for name, p in model.make_trainable("new").items() if "lm_head" not in name]
        own = {p.data_ptr() for p in model.roles["new"].model.parameters()}
        kept: dict[int, Tensor] = {}

        def keep(x: Tensor) -> Tensor:
            if x.data_ptr() not in own:
                kept[x.untyped_storage().data_ptr()] = x
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            hidden = model.hidden("new", row.layout, row.tokens)
        found = torch.autograd.grad(hidden.square().sum(), parameters)
        return (
            list(found),
            len(recomputed),
            sum(x.untyped_storage().nbytes() for x in kept.values()),
        )

    (plain, none, much), (again, some, little) = learned(False), learned(True)
    assert (none, some) == (0, LLAMA["num_hidden_layers"]) and little < much / 3
    for one, other in zip(again, plain, strict=True):
        assert torch.equal(one, other)
