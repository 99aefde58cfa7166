"""`model.mixed_precision: bf16` with `lora: none`: fp32 weights, products in bf16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import load, make, questions, ragged

from alignkit.models.packing import measure, pack
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.sampling import Sampling
from alignkit.settings import ModelSpec
from alignkit.tokens.encoder import Encoder
from tests.sampled import sample


def mixed(folder: Path, name: str = "Llama") -> SharedModel:
    made = make(folder, name)
    return SharedModel(
        ModelSpec(base="b", lora=None, mixed_precision="bf16", device="cpu"), str(made)
    )


@pytest.mark.parametrize("name", ["Llama", "Bloom"])
def test_weights_and_gradients_are_fp32_and_products_bf16(name: str, tmp_path: Path) -> None:
    """Bloom has no packed rows."""
    model = mixed(tmp_path / "mixed", name)
    assert model.packs == (name == "Llama")
    full = load(make(tmp_path / "full", name))
    model.add_role("new")
    parameters = model.make_trainable("new")
    seen = set()
    for module in model.roles["new"].model.modules():
        if type(module) is torch.nn.Linear:
            module.register_forward_hook(lambda module, given, out: seen.add(out.dtype))
    row = pack(ragged())
    logprobs, _ = model.logprobs(
        "new", model.hidden("new", row.layout, row.tokens)[row.before], row.targets
    )
    with torch.no_grad():
        exact, _ = full.logprobs(
            BASE, full.hidden(BASE, row.layout, row.tokens)[row.before], row.targets
        )
    assert seen == {torch.bfloat16} and logprobs.dtype == torch.float32
    difference = (logprobs - exact).abs().max()
    assert 0 < difference < 0.05
    logprobs.sum().backward()
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    learned = [p.grad for name, p in parameters.items() if "score" not in name]
    assert all(
        grad is not None and grad.dtype == torch.float32 and grad.isfinite().all()
        for grad in learned
    )


def test_samples_have_the_log_probabilities_that_training_measures(tmp_path: Path) -> None:
    model = mixed(tmp_path)
    model.add_role("new")
    model.make_trainable("new")
    encoder = Encoder(model.tokenizer)
    groups = sample(
        model,
        "new",
        encoder,
        questions(4),
        Sampling(max_new_tokens=8),
        samples_per_prompt=2,
        seed=0,
    )
    encoded = [found for group in groups if (found := encoder.encode(group, 200)) is not None]
    measured = torch.cat(measure(model, "new", encoded)["logprobs"])
    responses = [response for group in groups for response in group.responses]
    sampled = torch.tensor([value for response in responses for value in response.logprobs or ()])
    torch.testing.assert_close(sampled, measured, atol=0.03, rtol=0)
