"""A saved role as a whole model: what the classifier skips, and where a policy's responses end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from alignkit import Group, Message, Response
from alignkit.io.text import cache_folder
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.layout import GroupSpan
from alignkit.models.models import LoadedBase
from alignkit.models.shared_model import SharedModel
from alignkit.settings import LoraSpec, ModelSpec
from alignkit_plugins.models import tiny
from alignkit_plugins.models.whole_model import end_with, whole_model


def test_a_classifier_skips_what_the_reward_model_skipped(tmp_path: Path) -> None:
    """Whatever the tokenizer pads with."""
    source = str(tiny.source(cache_folder()))
    spec = ModelSpec(base="tiny", dtype="float32", lora=LoraSpec(r=2), device="cpu")
    shared = SharedModel(spec, source)
    shared.add_role("reward", head="scalar")
    shared.save("reward", tmp_path / "reward")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "reward")
    tokenizer.pad_token = "<|im_start|>"
    model, _ = whole_model(tmp_path / "reward", shared.base, spec, torch.float32, tokenizer)
    assert shared.roles["reward"].unread == model.config.pad_token_id == 0


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_base_is_written_with_the_values_that_the_run_computes_with(
    quantization: Any, tmp_path: Path
) -> None:
    """With the run's chat template."""
    spec = ModelSpec(
        base="tiny",
        dtype="float32",
        lora=LoraSpec(r=2),
        device="cpu",
        quantization=quantization,
        chat_template="plain",
    )
    service = LoadedBase(SharedModel(spec, str(tiny.source(cache_folder()))), artifact=Path)
    assert service["base"].save(tmp_path / "model") == []
    group = Group(
        (Message(role="user", content="bread is good"),), (Response(text="my old friend"),)
    )
    encoded = service.encoder.encode(group, 256)
    assert encoded is not None
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = tokenizer.apply_chat_template(
        list(group.prompt), add_generation_prompt=True, tokenize=False
    )
    assert text == "User: bread is good\n\nAssistant:"
    response = encoded.rows[0].tokens
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        logits = model(torch.tensor([[*encoded.prompt, *response]])).logits[
            0, len(encoded.prompt) - 1 : -1
        ]
    theirs = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
    torch.testing.assert_close(theirs, service["base"].logprobs([group])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-4), (torch.bfloat16, 0.5)], ids=str)
def test_a_merge_into_a_quantized_base_keeps_its_values(
    dtype: torch.dtype, most: float, tmp_path: Path
) -> None:
    source = str(tiny.source(cache_folder()))
    spec = ModelSpec(
        base="tiny", dtype="float32", lora=LoraSpec(r=2), device="cpu", quantization="nf4"
    )
    shared = SharedModel(spec, source)
    shared.add_role("policy")
    for parameter in shared.parameters_of("policy").values():
        parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(len(parameter)))
    shared.save("policy", tmp_path / "policy")
    merged, notes = whole_model(tmp_path / "policy", shared.base, spec, dtype, shared.tokenizer)
    assert notes[0] == "merged into the values that nf4 rounds the weights to, as it was trained"
    ids = shared.tokenizer(
        "Why does bread rise? Yeast eats the sugar in the dough.", return_tensors="pt"
    ).input_ids
    layout = TreeLayout([GroupSpan(0, ids.shape[1], ())])
    with torch.no_grad():
        ours, _ = shared.logprobs(
            "policy", shared.hidden("policy", layout, ids[0])[:-1], ids[0, 1:]
        )
        theirs = (
            merged(ids).logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        )
    torch.testing.assert_close(theirs, ours, atol=most, rtol=0)


@pytest.mark.parametrize(
    ("own", "ends", "expected"),
    [
        (2, {2}, 2),
        (2, {0, 2}, [2, 0]),
        ([5, 2], {2, 5}, [5, 2]),
        (None, {7}, 7),
        (None, set(), None),
    ],
)
def test_ends_are_added_behind_the_bases_own(
    own: int | list[int] | None, ends: set[int], expected: int | list[int] | None
) -> None:
    generation = GenerationConfig(eos_token_id=own)
    end_with(generation, ends)
    assert generation.eos_token_id == expected
    end_with(None, ends)  # of a classifier
