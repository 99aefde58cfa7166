"""Models that cannot use packed rows."""

from __future__ import annotations

from architectures import check_greedy, check_logprobs

from alignkit.models.shared_model import SharedModel

REASONS = {
    "DiffLlama": "decoding token by token differs",
    "Qwen2Moe": "its window of 14 tokens is only in its own mask",
    "Llama4": "it scales queries by their position",
}


def test_models_that_cannot_be_packed_use_their_own_attention(unpacked: SharedModel) -> None:
    assert not unpacked.packs and unpacked.unpacked_because
    assert REASONS.get(type(unpacked.model).__name__.removesuffix("ForCausalLM"), "") in unpacked.unpacked_because
    check_logprobs(unpacked)
    check_greedy(unpacked, count=8)
