"""Packs and decoding against transformers' own attention, one sequence at a time."""

from __future__ import annotations

import pytest
import torch
from architectures import check_logprobs, logprobs_of, packed_logprobs, plain, ragged

from alignkit.kernels.layout import GroupSpan
from alignkit.models.packing import pack
from alignkit.models.shared_model import SharedModel
from alignkit_plugins.backends.split_attention import saves_products


@pytest.mark.silent_bug(
    "masks: packing",
    "Packed examples attend to each other, or their positions run on.",
    "Packs compute what separate sequences do.",
    "huggingface/trl#1230",
    "huggingface/nanoVLM#201",
    "hiyouga/LlamaFactory#7318",
)
def test_packs_match_separate_sequences(policy: SharedModel, way: str) -> None:
    check_logprobs(policy)


@pytest.mark.parametrize(
    ("prompt", "responses", "split"),
    [(60, (25,) * 6, True), (60, (20, 25, 25, 25, 25), True), (256, (128, 128), False),
     (20, (200, 5), False), (9, (7,), False),
     (30, (), False), (30, (20, 0, 20, 20, 20), False)],
)  # fmt: skip
def test_responses_are_split_if_that_saves_products(
    prompt: int, responses: tuple[int, ...], split: bool
) -> None:
    assert saves_products(GroupSpan(0, prompt, responses)) is split


@pytest.fixture(scope="module")
def gradients(policy: SharedModel) -> dict[str, torch.Tensor | None]:
    """Of `weights` times the log-probabilities, one response at a time."""
    model = plain(policy)
    at, weights = 0, torch.linspace(-1, 1, len(pack(ragged()).targets))
    for group in ragged():
        for response in group.responses:
            logprobs = logprobs_of(model, group.prompt, response.tokens)
            (logprobs * weights[at : at + len(logprobs)]).sum().backward()
            at += len(logprobs)
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.silent_bug(
    "models: reference",
    "The reference is measured with dropout.",
    "Dropout is never on.",
    "huggingface/trl#5542",
    "unslothai/unsloth-zoo#912",
)
def test_gradients_match(
    policy: SharedModel, way: str, gradients: dict[str, torch.Tensor | None]
) -> None:
    role = policy.add_role("trained")
    try:
        parameters = policy.make_trainable("trained")
        logprobs = packed_logprobs(policy, "trained")
        (logprobs * torch.linspace(-1, 1, len(logprobs))).sum().backward()
        for name, parameter in parameters.items():
            torch.testing.assert_close(
                parameter.grad, gradients[name], atol=1e-4, rtol=1e-4, msg=name
            )
    finally:
        assert role.model is not policy.model
        policy.drop_role("trained")
