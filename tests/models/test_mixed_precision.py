"""`model.mixed_precision: bf16` with `lora: none`: fp32 weights, products in bf16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import load, make, questions, ragged
from tiny import shared

from alignkit.models.packing import measure, pack
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.sampling import Sampling
from alignkit.tokens.encoder import Encoder
from tests.sampled import sample


def logprobs(model: SharedModel, role: str) -> torch.Tensor:
    row = pack(ragged())
    hidden = model.hidden(role, row.layout, row.tokens)
    return model.logprobs(role, hidden[row.before], row.targets)[0]


@pytest.mark.parametrize("name", ["Llama", "Bloom"])  # Bloom has no packed rows
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
    found = logprobs(model, "new")
    with torch.no_grad():
        exact = logprobs(load(folder), BASE)
    assert seen == {torch.bfloat16} and found.dtype == torch.float32
    assert 0 < (found - exact).abs().max() < 0.05
    found.sum().backward()
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    for name, parameter in parameters.items():
        gradient = parameter.grad
        assert "score" in name or (gradient is not None and gradient.isfinite().all()), name
        assert gradient is None or gradient.dtype == torch.float32


def test_samples_have_the_log_probabilities_that_training_measures(tmp_path: Path) -> None:
    model = shared(make(tmp_path, "Llama"), lora=None, dtype="auto", mixed_precision="bf16")
    model.add_role("new")
    model.make_trainable("new")
    encoder, sampling = Encoder(model.tokenizer), Sampling(max_new_tokens=8)
    groups = sample(model, "new", encoder, questions(4), sampling, samples_per_prompt=2, seed=0)
    encoded = [found for group in groups if (found := encoder.encode(group, 200)) is not None]
    measured = torch.cat(measure(model, "new", encoded)["logprobs"])
    said = [value for group in groups for row in group.responses for value in row.logprobs or ()]
    torch.testing.assert_close(torch.tensor(said), measured, atol=0.03, rtol=0)
