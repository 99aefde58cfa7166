"""Models that can and cannot use packs, and mistakes that the check of a small copy must
find.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from architectures import (
    ARCHITECTURES,
    MIXTURES,
    UNPACKED,
    check_greedy,
    check_logprobs,
    load,
    make,
)
from torch import Tensor

from alignkit.contract.settings import ModelSpec
from alignkit.kernels import attention
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.decoding import Decoding
from alignkit.models import checked_model
from tests.models.tiny import shared

DECODING = "decoding token by token differs"
PACKED = "packed attention differs from the model's own"
REASONS = {
    "DiffLlama": DECODING,
    "GptOss": "its attention takes s_aux",
    **dict.fromkeys(("Qwen2Moe", "Llama4Text", "FalconH1", "Bloom", "GPTJ"), PACKED),
    **dict.fromkeys(("Qwen3Next", "MiniMax"), PACKED),
}
QUICK = {"Llama", "Gemma2", "DeepseekV2", "Mixtral", "Bloom", "GptOss", "Afmoe"}
EVERY = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in (*ARCHITECTURES, *MIXTURES, *UNPACKED)
]


@pytest.mark.parametrize("name", EVERY)
def test_every_family_has_its_answer(name: str, tmp_path: Path) -> None:
    """Those that cannot be packed use their own attention."""
    policy = load(make(tmp_path, name))
    assert policy.packs == (name not in REASONS), policy.unpacked_because
    assert REASONS.get(name, "") in policy.unpacked_because
    if name in UNPACKED:
        check_logprobs(policy)
        check_greedy(policy, count=8)


@pytest.mark.parametrize(
    "fields", [{"dtype": "bfloat16"}, {"quantization": "nf4"}, {"quantization": "int8"}]
)
def test_the_precision_of_the_weights_has_no_say(fields: dict[str, Any], tmp_path: Path) -> None:
    policy = shared(make(tmp_path, "Llama"), **fields)
    assert policy.packs, policy.unpacked_because


WINDOWS = {"sliding_window": 4, "attention_chunk_size": 4, "floor_scale": 2}


def test_the_copy_is_small_and_has_layers_of_every_kind(tmp_path: Path) -> None:
    """Its attention is that of the model; drawing its weights draws nothing from the model's."""
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    options = {**ARCHITECTURES["Gemma2"], "num_hidden_layers": 12, "layer_types": kinds * 2}
    options |= dict.fromkeys(WINDOWS, 8192)
    transformers.Gemma2Config(vocab_size=1000, **options).save_pretrained(tmp_path)
    state = torch.get_rng_state()
    copy = checked_model.small_copy(ModelSpec(base=str(tmp_path)), str(tmp_path), None)
    assert torch.equal(torch.get_rng_state(), state)
    assert copy.config.layer_types == kinds and len(copy.model.layers) == 6
    assert (copy.config.vocab_size, copy.config.hidden_size) == (256, 32)
    assert {name: getattr(copy.config, name) for name in WINDOWS} == WINDOWS
    assert copy.model.layers[0].mlp.down_proj.in_features == 16
    assert {weight.dtype for weight in copy.parameters()} == {torch.float32}


def test_the_copy_is_small_if_the_layers_have_another_name(tmp_path: Path) -> None:
    transformers.GPT2Config(n_layer=12, n_embd=32, n_head=4).save_pretrained(tmp_path)
    copy = checked_model.small_copy(ModelSpec(base=str(tmp_path)), str(tmp_path), None)
    assert len(copy.transformer.h) == 2 and copy.config.vocab_size == 256


packed, decoded = TreeLayout.attend, Decoding.attend


def leak(self: Any, layer: int, q: Tensor, k: Tensor, v: Tensor, args: Any) -> Tensor:
    """A token's value also reaches, a little, the token after it, even the next sequence's."""
    return packed(self, layer, q, k, v + 0.01 * v.roll(1, dims=2), args)


def scaled(self: Any, layer: int, q: Tensor, k: Tensor, v: Tensor, args: Any) -> Tensor:
    """The scale of the scores is one percent too large."""
    return packed(self, layer, q * 1.01, k, v, args)


def mixed(self: Any, layer: int, q: Tensor, k: Tensor, v: Tensor, args: Any) -> Tensor:
    """Rows of a batch see each other."""
    return decoded(self, layer, q, k, v + 0.01 * v.flip(0), args)


@pytest.mark.parametrize(
    ("layout", "mistake", "reason"),
    [
        (TreeLayout, leak, PACKED),
        (TreeLayout, scaled, PACKED),
        (Decoding, mixed, DECODING),
    ],
)
def test_wrong_attention_is_found(
    layout: type, mistake: Any, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "attend", mistake)
    policy = shared(make(tmp_path, "Llama"))
    assert not policy.packs and reason in policy.unpacked_because


@pytest.mark.parametrize("name", ["s_aux", "attention_mask", "dropout", "position_bias"])
def test_arguments_that_no_layout_knows_are_refused(name: str) -> None:
    module, x = torch.nn.Module(), torch.zeros(1, 1, 2, 4)
    arguments = {"attention_mask": None, name: 0.1 if name == "dropout" else x}
    with pytest.raises(attention.UnsupportedAttention, match=f"takes {name}"):
        attention._interface(module, x, x, x, **arguments)
