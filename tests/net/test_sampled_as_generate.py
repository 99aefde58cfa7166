"""Sampling against `generate` of plain transformers, one sequence at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import STATE_SPACES, check_greedy, load, make, questions

from alignkit.contract.settings import Sampling
from alignkit.kernels import decoding as decoding_module
from alignkit.kernels.decoding import Decoding
from alignkit.models import generate as decoder
from alignkit.models.packing import pack
from alignkit.models.shared_model import UNMODIFIED, SharedModel, Wants
from alignkit.tokens.encoder import Encoder
from tests.sampled import sample


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of slots that remained at each update of the cache."""
    seen: list[int] = []
    original = Decoding.update_slots

    def spy(self: Decoding, keep: Sequence[int], *others: Any) -> None:
        seen.append(len(keep))
        original(self, keep, *others)

    monkeypatch.setattr(Decoding, "update_slots", spy)
    yield seen


def test_tokens_drawn_ahead_match_generate(
    policy: SharedModel, as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_greedy(policy)
    monkeypatch.setattr(decoder, "SLOTS", 6)  # finished slots are replaced
    check_greedy(policy)


def test_greedy_sampling_matches_generate(
    policy: SharedModel, copies: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_greedy(policy)
    # Small blocks skip the columns that all of their slots leave empty
    monkeypatch.setattr(decoding_module, "BLOCK", 3)
    check_greedy(policy)
    assert len(copies) > 1
    copies.clear()
    monkeypatch.setattr(decoder, "SLOTS", 6)  # finished slots are replaced
    check_greedy(policy)
    assert any(0 < kept < 6 for kept in copies) and len(copies) > 6
    monkeypatch.setattr(decoder, "CACHE_BYTES", 1)  # one slot at a time
    check_greedy(policy)


@pytest.mark.silent_bug(
    "sampling: temperature",
    "The sampler reports log-probabilities at another temperature, and ratios differ from 1 "
    "before any update.",
    "Sampler and training agree at the sampling temperature.",
    "huggingface/trl#4159",
    "thinking-machines-lab/tinker-feedback#148",
)
def test_sampled_logprobs_match_the_training_path(policy: SharedModel) -> None:
    groups = questions(6)
    encoder = Encoder(policy.tokenizer)
    found = sample(
        policy,
        UNMODIFIED,
        encoder,
        groups,
        Sampling(max_new_tokens=8, temperature=0.7),
        samples_per_prompt=3,
        seed=1,
    )
    encoded = [e for g in found if (e := encoder.encode(g, 64)) is not None]
    packed = pack(encoded)
    with torch.no_grad():
        hidden = policy.hidden(UNMODIFIED, packed.layout, packed.tokens)
        again = policy.logprobs(
            UNMODIFIED, hidden[packed.before], packed.targets, Wants(temperature=0.7)
        )[0]
    sampled = [x for g in found for r in g.responses for x in r.logprobs or ()]
    torch.testing.assert_close(torch.tensor(sampled), again, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", list(STATE_SPACES))
def test_models_without_keys_and_values_write_what_transformers_writes(
    name: str, tmp_path: Path
) -> None:
    # In transformers, RecurrentGemma reads a prompt of one token with the states of the response before
    # it.
    check_greedy(load(make(tmp_path, name)), count=9 if name == "RecurrentGemma" else 20)
