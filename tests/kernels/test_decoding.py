"""Decoding against the same attention over whole sequences, with slots that leave and enter."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alignkit.contract.settings import Sampling
from alignkit.kernels import decoding as decoding_module
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.decoding import Decoding
from alignkit.kernels.layout import AttentionArgs, GroupSpan
from alignkit.models.generate import Decoder, Slot
from alignkit_plugins.backends import static_decoding
from alignkit_plugins.backends.static_decoding import StaticDecoding
from tests.same import same

HEADS = (4, 2, 2)  # of queries, keys and values
SIZE = 8
PROMPTS = (5, 2, 7, 3)
TOKENS = 6  # written after each prompt
PLAIN = AttentionArgs(None, None, None)


@pytest.fixture
def sequences() -> list[list[Tensor]]:
    """q, k and v of whole sequences, [1, heads, tokens, size] each."""
    generator = torch.Generator().manual_seed(0)
    return [
        [
            torch.randn(1, heads, prompt + TOKENS, SIZE, generator=generator, dtype=torch.float64)
            for heads in HEADS
        ]
        for prompt in PROMPTS
    ]


def prefilled(sequences: list[list[Tensor]], *indices: int, args: AttentionArgs) -> TreeLayout:
    """The stored keys and values of these sequences' prompts."""
    starts = [sum(PROMPTS[i] for i in indices[:n]) for n in range(len(indices))]
    spans = [GroupSpan(start, PROMPTS[i], ()) for start, i in zip(starts, indices, strict=True)]
    layout = TreeLayout(spans, store_kv=True)
    parts = [[x[:, :, : PROMPTS[i]] for x in sequences[i]] for i in indices]
    q, k, v = (torch.cat(same_part, dim=2) for same_part in zip(*parts, strict=True))
    layout.attend(0, q, k, v, args)
    return layout


@pytest.mark.parametrize("block", [32, 2, None], ids=["one block", "small blocks", "static"])
@pytest.mark.parametrize(
    "args", [PLAIN, AttentionArgs(0.3, 4, None), AttentionArgs(None, None, 2.0)]
)
def test_every_token_attends_as_in_its_whole_sequence(
    args: AttentionArgs,
    block: int | None,
    sequences: list[list[Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoding_module, "BLOCK", block or 32)
    monkeypatch.setattr(static_decoding, "STEP", 4)
    whole = [
        TreeLayout([GroupSpan(0, q.shape[2], ())]).attend(0, q, k, v, args)[0]
        for q, k, v in sequences
    ]
    decoding = Decoding() if block else StaticDecoding()
    decoding.update_slots([], TOKENS, prefilled(sequences, 2, 0, 1, args=args), [1, 2, 0])
    slots, places = [0, 1, 2], list(PROMPTS)
    for step in range(TOKENS):
        if step == 2:  # the longest leaves and another enters
            decoding.update_slots([0, 1], TOKENS, prefilled(sequences, 3, args=args), [0])
            slots = [0, 1, 3]
        if step == 4:
            decoding.update_slots([1, 2], TOKENS)
            slots = [1, 3]
        assert block or decoding.cache[0][0].shape[2] % 4 == 0  # all that slots attend to
        now = [[x[:, :, places[i] : places[i] + 1] for x in sequences[i]] for i in slots]
        out = decoding.attend(0, *map(torch.cat, zip(*now, strict=True)), args)
        decoding.advance()
        for slot, i in enumerate(slots):
            same(out[slot], whole[i][:, places[i] : places[i] + 1])
            places[i] += 1


def test_only_active_slots_are_written_ahead() -> None:
    """The cache may have no room for more."""
    slots = [Slot(0, np.zeros(9), ended=True), Slot(0, np.zeros(2))]
    logits, steps = torch.zeros(2, 3), list[int]()
    decoder: Any = SimpleNamespace(
        request=SimpleNamespace(sampling=Sampling(), wrote=None),
        ends=torch.tensor([2]),
        length=lambda slot: 1,
        append=lambda *of: steps.append(1),
        _read=lambda *of: logits,
    )
    Decoder.write(decoder, slots, logits, ahead=StaticDecoding.ahead)
    assert sum(steps) == 2
