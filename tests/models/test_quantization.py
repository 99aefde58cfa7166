"""A base in 4 bits: what is stored, and that training on it is training on the numbers it was
rounded to.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alignkit.io.text import cache_folder
from alignkit.models.packing import Wants, forward
from alignkit.models.shared_model import SharedModel
from alignkit.settings import LoraSpec, ModelSpec
from alignkit_plugins.models import tiny
from alignkit_plugins.models.whole_model import export
from alignkit_plugins.recipes.plan import _Planner
from tests.test_train import encoded

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="no bitsandbytes here"
)
FORMS = ["nf4", "nf4_double_quant"]


def spec_of(quantization: Any, base: str = "tiny") -> ModelSpec:
    fields = {
        "base": base,
        "dtype": "float32",
        "device": "cpu",
        "lora": LoraSpec(r=4),
        "quantization": quantization,
    }
    return ModelSpec.model_validate(fields)


def shared(quantization: Any, source: Path | None = None) -> SharedModel:
    """A model whose adapter has random numbers, the same ones for every base."""
    source = source or tiny.source(cache_folder())
    model = SharedModel(spec_of(quantization, str(source)), str(source))
    model.add_role("policy")
    generator = torch.Generator().manual_seed(0)
    for parameter in model.make_trainable("policy").values():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def learned(model: SharedModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A loss, and the gradients of the adapter by name."""
    loss = -forward(model, "policy", encoded(model, 4), Wants()).logprobs.sum()
    loss.backward()
    gradients = {
        name: p.grad for name, p in model.parameters_of("policy").items() if p.grad is not None
    }
    return loss.detach(), gradients


@pytest.mark.parametrize("form", FORMS)
def test_losses_and_gradients_are_those_of_the_rounded_weights(form: Any, tmp_path: Path) -> None:
    quantized = shared(form)
    notes = export(
        None, tmp_path, quantized.base, quantized.spec, torch.float32, quantized.tokenizer, ()
    )
    assert notes == []
    loss, gradients = learned(quantized)
    expected, others = learned(shared("none", tmp_path))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert gradients.keys() == others.keys() and len(gradients) == len(
        quantized.parameters_of("policy")
    )
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-4, atol=1e-6)
    without, _ = learned(shared("none"))
    assert abs(float(without - expected)) > 1e-3  # rounding to 4 bits changes the loss


@pytest.mark.parametrize("form", [*FORMS, "int8"])
def test_bytes_of_a_quantized_weight(form: Any) -> None:
    from bitsandbytes.functional import quantize_4bit

    weight, spec = torch.randn(512, 1024), spec_of(form)
    shape = {"parameters": weight.numel(), "matrices": weight.numel(), "dtype": torch.float32}
    weights: Any = _Planner.weights
    expected = weights.fget(SimpleNamespace(spec=spec, **shape))
    if form == "int8":
        assert expected == weight.numel()
        return
    stored, state = quantize_4bit(weight, compress_statistics=form != "nf4", quant_type="nf4")
    scales = [state.absmax, *([state.state2.absmax] if state.state2 is not None else [])]
    assert expected == stored.nbytes + sum(scale.nbytes for scale in scales)
