"""A saved role as a whole model: what the classifier skips, and where a policy's responses end;
and a base in 4 bits: what is stored, and that training on it is training on the numbers it was
rounded to.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from architectures import logprobs_alone
from tiny import encoded as only
from tiny import shared, user
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from alignkit import Group, Response
from alignkit.contract.settings import ModelSpec
from alignkit.models.models import LoadedModel
from alignkit.models.packing import forward, measure
from alignkit.models.shared_model import SharedModel, Wants
from alignkit.models.whole_model import end_with, export, whole_model
from alignkit.testing.tiny import add_noise
from alignkit_plugins.recipe_tools.plan import _Planner
from tests.same import same
from tests.test_train import encoded


def with_policy(source: Path | None = None, **fields: Any) -> SharedModel:
    """A model with a role `policy`, whose adapter has the same noise for every base."""
    model = shared(source, **fields)
    model.add_role("policy")
    add_noise(model, "policy", 0.05, seed=0)
    return model


def test_a_classifier_skips_what_the_reward_model_skipped(tmp_path: Path) -> None:
    """Whatever the tokenizer pads with."""
    model = shared()
    model.add_role("reward", head="scalar")
    model.save("reward", tmp_path / "reward")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "reward")
    tokenizer.pad_token = "<|im_start|>"
    whole, _ = whole_model(tmp_path / "reward", model.origin, model.spec, torch.float32, tokenizer)
    assert model.roles["reward"].pad_token_id == whole.config.pad_token_id == 0


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_base_is_written_with_the_values_that_the_run_computes_with(
    quantization: Any, tmp_path: Path
) -> None:
    """With the run's chat template."""
    model = shared(quantization=quantization, chat_template="plain")
    service = LoadedModel(model, artifact=Path)
    assert service["base"].save(tmp_path / "model") == []
    group = Group((user("bread is good"),), (Response(text="my old friend"),))
    found = only(service.encoder.encode(group, 256))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = tokenizer.apply_chat_template(
        list(group.prompt), add_generation_prompt=True, tokenize=False
    )
    assert text == "User: bread is good\n\nAssistant:"
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    theirs = logprobs_alone(saved, found.prompt, found.responses[0].tokens)
    same(theirs, service["base"].logprobs([group])[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-4), (torch.bfloat16, 0.5)], ids=str)
def test_a_merge_into_a_quantized_base_keeps_its_values(
    dtype: torch.dtype, most: float, tmp_path: Path
) -> None:
    model = with_policy(quantization="nf4")
    model.save("policy", tmp_path / "policy")
    merged, notes = whole_model(
        tmp_path / "policy", model.origin, model.spec, dtype, model.tokenizer
    )
    assert "merged into the values that nf4 rounds the weights to" in notes[0]
    (found,) = encoded(model, 1).groups
    (ours,) = measure(model, "policy", [found])["logprobs"]
    theirs = logprobs_alone(merged, found.prompt, found.responses[0].tokens)
    same(theirs.float(), ours, atol=most, rtol=0)


@pytest.mark.parametrize(
    ("own", "ends", "expected"),
    [(2, {2}, 2), ([5, 2], {2, 0, 5}, [5, 2, 0]), (None, {7}, 7), (None, set(), None)],
)
def test_ends_are_added_behind_the_bases_own(own: Any, ends: set[int], expected: Any) -> None:
    generation = GenerationConfig(eos_token_id=own)
    end_with(generation, ends)
    assert generation.eos_token_id == expected
    end_with(None, ends)  # of a classifier


def learned(model: SharedModel) -> tuple[torch.Tensor, dict[str, Any]]:
    """A loss, and the gradients of the adapter by name."""
    model.make_trainable("policy")
    loss = -forward(model, "policy", encoded(model, 4), Wants()).logprobs.sum()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.parameters_of("policy").items()}


@pytest.mark.parametrize("form", ["nf4", "nf4_double_quant"])
def test_losses_and_gradients_are_those_of_the_rounded_weights(form: str, tmp_path: Path) -> None:
    quantized = with_policy(quantization=form)
    spec, tokenizer = quantized.spec, quantized.tokenizer
    assert export(None, tmp_path, quantized.origin, spec, torch.float32, tokenizer, ()) == []
    loss, gradients = learned(quantized)
    expected, others = learned(with_policy(tmp_path))
    same(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients, others, rtol=1e-4, atol=5e-5)
    without, _ = learned(with_policy())
    assert abs(float(without - expected)) > 1e-3  # rounding to 4 bits changes the loss


@pytest.mark.parametrize("form", ["nf4", "nf4_double_quant", "int8"])
def test_bytes_of_a_quantized_weight(form: Any) -> None:
    from bitsandbytes.functional import quantize_4bit

    weight, count = torch.randn(512, 1024), 512 * 1024
    spec = ModelSpec(base="tiny", quantization=form)
    planned = SimpleNamespace(spec=spec, parameters=count, matrices=count, dtype=torch.float32)
    weights: Any = _Planner.weights
    stored, state = quantize_4bit(weight, compress_statistics=form != "nf4", quant_type="nf4")
    scales = [state.absmax, *([state.state2.absmax] if state.state2 is not None else [])]
    bytes_in_4_bits = stored.nbytes + sum(scale.nbytes for scale in scales)
    assert weights.fget(planned) == (count if form == "int8" else bytes_in_4_bits)
