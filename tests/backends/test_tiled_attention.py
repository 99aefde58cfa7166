"""Attention in tiles: where it is used, and that sums of bf16 lose no digits."""

from __future__ import annotations

import pytest
import torch
import yaml
from torch import Tensor

from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.layout import AttentionArgs, GroupSpan
from alignkit_plugins.backends import processor, tiled_attention
from tests.same import distance

pytestmark = pytest.mark.cpu_only("tiles are for CPUs")

HEADS, KEY_HEADS, SIZE = 4, 2, 8
PLAIN = AttentionArgs(None, None, None)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of four queries, which are worth their price."""
    monkeypatch.setattr(tiled_attention, "QUERIES", 4)
    monkeypatch.setattr(tiled_attention, "SETUP", 0)
    monkeypatch.setattr(tiled_attention, "price", lambda x, masked: 1.0)


def drawn(length: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [
        torch.randn(heads, length, SIZE, generator=generator, dtype=torch.float64).requires_grad_()
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    ]


def tiles_of(span: GroupSpan, width: int = HEADS * SIZE, price: float = 1.0) -> list[slice] | None:
    """The queries of each tile."""
    used = tiled_attention.tiles(span, width, price)
    return None if used is None else [slice(tile.start, tile.stop) for tile in used]


@pytest.mark.usefixtures("small")
def test_bf16_is_close_to_float64() -> None:
    """Queries are much nearer to some keys than to others, so rounded scores or sums would show."""
    used = tiled_attention.tiles(GroupSpan(0, 100, (100, 100)), HEADS * SIZE, 1.0)
    assert used is not None
    q, k, v = drawn(300)
    upstream, results = torch.randn(q.shape).bfloat16(), []
    for dtype in (torch.bfloat16, torch.float64):
        given = [x.detach().bfloat16().to(dtype).requires_grad_() for x in (3 * q, 3 * k, v)]
        out = tiled_attention.attention(given[0], given[1], given[2], used, None)
        results.append([out, *torch.autograd.grad(out, given, upstream.to(dtype))])
        assert all(x.dtype == dtype for x in results[-1])
    assert max(map(distance, *results)) < 0.005


@pytest.mark.parametrize("native", [True, False])
def test_only_dtypes_that_the_processor_multiplies_natively(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "multiplies_bf16", lambda: native)
    tiled = {"float32": True, "float64": True, "float16": False, "bfloat16": native}
    for name in tiled:
        x = torch.zeros(1, dtype=getattr(torch, name))
        assert tiled_attention.supported(x) is tiled[name], name


def test_stored_keys_are_no_copies_for_each_head_and_have_no_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Tensor, "repeat_interleave", None)
    row = TreeLayout([GroupSpan(0, 5, ())], store_kv=True)
    q, k, v = (x[None] for x in drawn(5))
    assert row.attend(0, q, k, v, PLAIN).requires_grad
    assert not any(x.requires_grad for x in row.kv[0])


# Prompt, responses, width, price, and where tiles end
CUT = yaml.safe_load("""
- [100, [60], 576, 1.0, []]  # short
- [300, [300], 64, 1.0, []]  # narrow heads: products are cheap, tiles expensive
- [90, [180, 180], 576, 1.0, [90, 180, 270, 360, 450]]
- [90, [180, 180], 576, 1.45, [90, 180, 270, 360, 450]]
# A fused kernel skips the half that no query sees, and tiles cannot do better
- [1000, [], 576, 2.9, []]
- [500, [500], 576, 2.9, []]
""")


@pytest.mark.parametrize(("prompt", "responses", "width", "price", "ends"), CUT)
def test_which_groups_are_cut(
    prompt: int, responses: list[int], width: int, price: float, ends: list[int]
) -> None:
    span = GroupSpan(0, prompt, tuple(responses))
    used = tiles_of(span, width, price)
    assert (used is None) == (not ends) and [tile.stop for tile in used or ()] == ends
    assert price < 2 or tiles_of(span, width)


@pytest.mark.parametrize(
    ("amd", "dtype", "tiled"),
    [
        (True, torch.float32, True),
        (True, torch.bfloat16, True),
        (False, torch.float32, False),
        (False, torch.bfloat16, True),
    ],
)
def test_the_fused_kernel_is_slow_on_amd_and_in_bf16(
    amd: bool, dtype: torch.dtype, tiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "is_amd", lambda: amd)
    price = tiled_attention.price(torch.zeros(1, dtype=dtype), masked=False)
    assert (tiles_of(GroupSpan(0, 300, (300,)), 576, price) is not None) is tiled
