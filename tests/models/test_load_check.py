"""Models that can and cannot use packed rows, in fp32 and bf16, and mistakes that the check at load must find."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, MIXTURES, UNPACKED, check_greedy, check_logprobs, make
from torch import Tensor

from alignkit.kernels import attention
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.decoding import Decoding
from alignkit.models.shared_model import SharedModel
from alignkit.settings import LoraSpec, ModelSpec

REASONS = {
    "DiffLlama": "decoding token by token differs",
    "Qwen2Moe": "its window of 14 tokens is only in its own mask",
    "Llama4Text": "it scales queries by their position",
    "GptOss": "its attention takes s_aux",
    "FalconH1": "changing a response changes tokens that do not see it",
    "Bloom": "only 0 of its layers use transformers' attention interface",
    "GPTJ": "it does not use transformers' attention interface",
    "Qwen3Next": "only 1 of its layers use transformers' attention interface",
    "MiniMax": "only 1 of its layers use transformers' attention interface",
}
FLOAT32_ROUTERS = {"Ernie4_5_Moe"}  # transformers keeps them so
DTYPES = ["float32", "bfloat16"]


def loaded(folder: Path, name: str, dtype: Any = "float32", **options: Any) -> SharedModel:
    make(folder, name)
    spec = ModelSpec(base=str(folder), dtype=dtype, lora=LoraSpec(r=2), device="cpu", **options)
    return SharedModel(spec, str(folder))


def test_models_that_cannot_be_packed_use_their_own_attention(unpacked: SharedModel) -> None:
    assert not unpacked.packs and unpacked.unpacked_because
    check_logprobs(unpacked)
    check_greedy(unpacked, count=8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*ARCHITECTURES, *MIXTURES, *UNPACKED])
def test_every_dtype_has_the_same_answer(name: str, dtype: str, tmp_path: Path) -> None:
    policy = loaded(tmp_path, name, dtype)
    assert policy.packs == (name not in REASONS)
    assert REASONS.get(name, "") in policy.unpacked_because
    kept = {torch.float32} if name in FLOAT32_ROUTERS else set()
    assert {parameter.dtype for parameter in policy.model.parameters()} == {getattr(torch, dtype), *kept}, "put back"


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_models_are_packed(quantization: str, tmp_path: Path) -> None:
    """Rounding to 8 bits looks at all tokens of a pass, so these are compared with their weights alone."""
    policy = loaded(tmp_path, "Llama", "bfloat16", quantization=quantization)
    assert policy.packs, policy.unpacked_because


def leak(self: TreeLayout, layer: int, q: Tensor, k: Tensor, v: Tensor, args: Any) -> Tensor:
    """A token's value also reaches, a little, the token after it, even the next sequence's."""
    return correct(self, layer, q, k, v + 0.01 * v.roll(1, dims=2), args)


def blind(self: TreeLayout, layer: int, q: Tensor, k: Tensor, v: Tensor, args: Any) -> Tensor:
    """Every token sees only itself."""
    correct(self, layer, q, k, v, args)
    return v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)


def shifted(self: TreeLayout, layer: int, q: Tensor, k: Tensor, v: Tensor, args: Any) -> Tensor:
    """The scale of the scores is one percent too large."""
    return correct(self, layer, q * 1.01, k, v, args)


correct = TreeLayout.attend


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("mistake", "reason"),
    [
        (leak, "changing a response changes tokens that do not see it"),
        (blind, "does not change tokens that see it"),
        (shifted, "packed attention differs from the model's own"),
    ],
)
def test_wrong_attention_is_found(
    mistake: Callable[..., Tensor], reason: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TreeLayout, "attend", mistake)
    policy = loaded(tmp_path, "Llama", dtype)
    assert not policy.packs and reason in policy.unpacked_because


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_a_batch_that_see_each_other_are_found(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend = Decoding.attend

    def mixed(self: Decoding, layer: int, q: Tensor, k: Tensor, v: Tensor, args: Any) -> Tensor:
        return attend(self, layer, q, k, v + 0.01 * v.flip(0), args)

    monkeypatch.setattr(Decoding, "attend", mixed)
    policy = loaded(tmp_path, "Llama", dtype)
    assert not policy.packs and policy.unpacked_because == "rows of a sampled batch see each other"


def test_arguments_that_no_layout_knows_are_refused() -> None:
    module, x = torch.nn.Module(), torch.zeros(1, 1, 2, 4)
    for name, value in {"s_aux": x, "attention_mask": x, "dropout": 0.1, "position_bias": x}.items():
        arguments = {"attention_mask": None, name: value}
        with pytest.raises(attention.UnsupportedAttention, match=f"takes {name}"):
            attention._interface(module, x, x, x, **arguments)


def test_the_result_can_be_viewed(tmp_path: Path) -> None:
    """Afmoe views it as [tokens, hidden]."""
    policy = loaded(tmp_path, "Afmoe")
    assert policy.packs
    policy.tokenizer.eos_token = "t1"
    check_logprobs(policy)
