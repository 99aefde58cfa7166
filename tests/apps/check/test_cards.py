"""Cards are read as people write them, and attention on a card keeps what fused kernels keep."""

from __future__ import annotations

import pytest
import torch

from alignkit.errors import RecipeError
from alignkit.kernels.layout import AttentionArgs, GroupSpan
from alignkit_apps.check.cards import CARDS, larger_cards, machine_of
from alignkit_apps.check.memory import LiveBytes
from alignkit_apps.check.shape_model import CardLayout


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [("8xH100", "H100", 8), ("L4", "L4", 1), ("2 x a100-80gb", "A100", 2), ("4xRTX 4090", "RTX4090", 4)],
)
def test_cards_are_read(text: str, name: str, count: int) -> None:
    found = machine_of(text)
    assert (found.name, found.count, found.memory) == (name, count, CARDS[name].memory)


@pytest.mark.parametrize(
    ("text", "said"), [("8xH10", "did you mean 'H100'"), ("0xH100", "a number and a card"), ("", "such as 8xH100")]
)
def test_unknown_cards_are_refused(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        machine_of(text)


def test_the_smallest_card_comes_first() -> None:
    assert [card.name for card in larger_cards(79e9)][:2] == ["A100", "H100"] and larger_cards(1e15) == []


def test_attention_on_a_card_keeps_no_scores() -> None:
    q, k, v = (torch.zeros(1, heads, 512, 16, requires_grad=True) for heads in (4, 2, 2))
    layout = CardLayout([GroupSpan(0, 512, ())])
    with LiveBytes([q, k, v]) as counted:
        out = layout.attend(0, q, k, v, AttentionArgs(None, None, None))
        assert counted.live == q.nbytes + 4 * 4 * 512  # the result, and a number per query
        out.sum().backward()
    assert q.grad is not None and counted.peak < 4 * q.nbytes < 4 * 4 * 512 * 512
