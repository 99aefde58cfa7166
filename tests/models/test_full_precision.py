"""Forward passes in fp32 of a model that is stored in bf16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, MIXTURES, make, tokens

from alignkit.models.full_precision import full_precision

# Gemma rounds a constant to the dtype of its embeddings.
FAMILIES = [name for name in (*ARCHITECTURES, *MIXTURES) if not name.startswith("Gemma")]


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_pass_equals_that_of_the_model_converted_to_fp32(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    short = AutoModelForCausalLM.from_pretrained(make(tmp_path, name), dtype=torch.bfloat16)
    ids = torch.tensor([tokens(11, 3)])
    before = {key: value.clone() for key, value in short.state_dict().items()}
    rounded = short(input_ids=ids).logits
    with full_precision(short):
        found = short(input_ids=ids).logits
        again = short(input_ids=ids).logits
    after = short.state_dict()
    assert all(torch.equal(after[key], value) and after[key].dtype == value.dtype for key, value in before.items())
    assert torch.equal(short(input_ids=ids).logits, rounded)
    wanted = short.float()(input_ids=ids).logits
    assert found.dtype == torch.float32 and torch.equal(found, again)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert (rounded.float() - wanted).abs().max() > 1e-3


@torch.no_grad()
def test_weights_are_put_back_after_an_error(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(make(tmp_path, "Llama"), dtype=torch.bfloat16)
    with pytest.raises(TypeError), full_precision(model):
        model(input_ids=torch.tensor([[1, 2]]), position_ids="none")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model(input_ids=torch.tensor([[1, 2]])).logits.dtype == torch.bfloat16
