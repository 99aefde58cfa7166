"""`model.mixed_precision: bf16` with `lora: none`: fp32 weights, products in bf16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import load, make, packed_logprobs
from tiny import shared

from alignkit.models.shared_model import UNMODIFIED


@pytest.mark.parametrize("name", ["Llama", "Bloom"])  # Bloom has no packs
def test_weights_and_gradients_are_fp32_and_products_bf16(name: str, tmp_path: Path) -> None:
    folder = make(tmp_path, name)
    model = shared(folder, lora=None, dtype="auto", mixed_precision="bf16")
    assert model.packs == (name == "Llama")
    model.add_role("new")
    parameters = model.make_trainable("new")
    seen = set()
    for module in model.roles["new"].model.modules():
        if type(module) is torch.nn.Linear:
            module.register_forward_hook(lambda module, given, out: seen.add(out.dtype))
    found = packed_logprobs(model, "new")
    with torch.no_grad():
        exact = packed_logprobs(load(folder), UNMODIFIED)
    assert seen == {torch.bfloat16} and found.dtype == torch.float32
    assert 0 < (found - exact).abs().max() < 0.05
    found.sum().backward()
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    for name, parameter in parameters.items():
        gradient = parameter.grad
        assert "score" in name or (gradient is not None and gradient.isfinite().all()), name
        assert gradient is None or gradient.dtype == torch.float32
