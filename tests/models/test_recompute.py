"""Layers that are computed a second time in the backward pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, make, ragged
from torch import Tensor

from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.layout import GroupSpan
from alignkit.models.packing import pack
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.settings import LoraSpec, ModelSpec


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_recomputed_layers_have_the_same_gradients(
    name: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two roles in one backward pass, which starts while another role is active and another row was read last."""
    folder = make(tmp_path, name)
    spec = ModelSpec(base=str(folder), dtype="float32", lora=LoraSpec(r=2, lora_alpha=4), device="cpu")
    policy = SharedModel(spec, str(folder))
    policy.add_role("new")
    policy.add_role("value", start="new", head="scalar")
    parameters = {role: policy.make_trainable(role) for role in ("new", "value")}
    with torch.no_grad():
        for number, parameter in enumerate(p for own in parameters.values() for p in own.values()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    row = pack(ragged())

    def gradients() -> list[Tensor]:
        logprobs, _ = policy.logprobs("new", policy.hidden("new", row.layout, row.tokens)[row.before], row.targets)
        values = policy.scalars("value", policy.hidden("value", row.layout, row.tokens)[row.before])
        loss = (logprobs * torch.arange(len(logprobs)) + values.square()).sum()
        policy.hidden(BASE, TreeLayout([GroupSpan(0, 4, ())]), row.tokens[:4])
        found = torch.autograd.grad(loss, [p for own in parameters.values() for p in own.values()])
        assert policy.active_adapter.name is None
        return list(found)

    kept = gradients()
    assert policy.recomputed == 0 and all(gradient.any() for gradient in kept)
    monkeypatch.setattr("alignkit.models.budget.total", lambda device: 0.0)
    again = gradients()
    assert policy.recomputed == 3  # two roles, and the pass of the base
    for one, other in zip(again, kept, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        gradients_off = policy.hidden("new", row.layout, row.tokens)
    assert policy.recomputed == 3 and not gradients_off.requires_grad
