"""Attention in tiles against attention written out token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from alignkit.kernels import attention, capabilities, tiled_attention
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.layout import AttentionArgs, GroupSpan

pytestmark = pytest.mark.cpu_only("tiles are for CPUs")

HEADS, KEY_HEADS, SIZE = 4, 2, 8
# Only a prompt, only a response, responses of similar and of different lengths, an empty one.
GROUPS = [(9, ()), (0, (11,)), (6, (7,)), (5, (8, 3)), (1, (1, 9)), (7, (0, 6, 5))]


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled_attention, "QUERIES", 4)
    monkeypatch.setattr(tiled_attention, "SETUP", 0)


def drawn(length: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = [(HEADS, length, SIZE), (KEY_HEADS, length, SIZE), (KEY_HEADS, length, SIZE)]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes
    ]


def written_out(
    q: Tensor, k: Tensor, v: Tensor, prompt: int, responses: tuple[int, ...], scale: float
) -> Tensor:
    """A query sees its prompt's keys and its own response's, up to its own position."""
    owner = [-1] * prompt + [index for index, length in enumerate(responses) for _ in range(length)]
    out = torch.zeros_like(q)
    for head in range(HEADS):
        of = head * KEY_HEADS // HEADS
        for at, own in enumerate(owner):
            seen = [key for key in range(at + 1) if owner[key] in (-1, own)]
            probabilities = torch.softmax(scale * (k[of, seen] @ q[head, at]), dim=0)
            out[head, at] = probabilities @ v[of, seen]
    return out


@pytest.mark.parametrize(("prompt", "responses"), GROUPS)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_values_and_gradients(prompt: int, responses: tuple[int, ...], scale: float | None) -> None:
    span = GroupSpan(0, prompt, responses)
    q, k, v = drawn(span.length)
    used = tiled_attention.tiles(span, HEADS * SIZE, 1.0)
    assert used is not None
    assert len(used) > 1
    found = tiled_attention.attention(q, k, v, used, scale)
    wanted = written_out(q, k, v, prompt, responses, SIZE**-0.5 if scale is None else scale)
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn(
        found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(1)
    )
    for mine, theirs in zip(
        *(torch.autograd.grad(out, (q, k, v), upstream) for out in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("prompt", "responses"), GROUPS)
def test_every_query_is_in_one_tile(prompt: int, responses: tuple[int, ...]) -> None:
    used = tiled_attention.tiles(GroupSpan(0, prompt, responses), HEADS * SIZE, 1.0)
    assert used is not None
    queries = [query for tile in used for query in range(tile.start, tile.stop)]
    assert queries == list(range(prompt + sum(responses)))
    assert max(tile.stop - tile.start for tile in used) <= tiled_attention.QUERIES


def test_bf16_is_close_to_float64() -> None:
    """Queries are much nearer to some keys than to others, so rounded scores or sums would show."""
    span = GroupSpan(0, 100, (100, 100))
    q, k, v = (x * factor for x, factor in zip(drawn(300), (3, 3, 1), strict=True))
    used = tiled_attention.tiles(span, HEADS * SIZE, 1.0)
    assert used is not None
    upstream = torch.randn(q.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    results = []
    for dtype in (torch.bfloat16, torch.float64):
        given = [x.detach().bfloat16().to(dtype).requires_grad_() for x in (q, k, v)]
        out = tiled_attention.attention(given[0], given[1], given[2], used, None)
        results.append([out.detach(), *torch.autograd.grad(out, given, upstream.to(dtype))])
        assert all(x.dtype == dtype for x in results[-1])
    for mine, theirs in zip(*results, strict=True):
        assert float((mine.double() - theirs).norm() / theirs.norm()) < 0.005


@pytest.mark.parametrize("native", [True, False])
def test_only_dtypes_that_the_processor_multiplies_natively(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capabilities, "multiplies_bf16", lambda device: native)
    found = {
        dtype: tiled_attention.supported(torch.zeros(1, dtype=dtype))
        for dtype in (torch.float32, torch.float64, torch.float16)
    }
    assert found == {torch.float32: True, torch.float64: True, torch.float16: False}
    assert tiled_attention.supported(torch.zeros(1, dtype=torch.bfloat16)) is native
    assert not tiled_attention.supported(torch.zeros(1, device="meta"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_row_with_a_tiled_and_an_untiled_group(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capabilities, "multiplies_bf16", lambda device: True)
    monkeypatch.setattr(tiled_attention, "price", lambda x, masked: 1.0)
    row = TreeLayout([GroupSpan(0, 9, (8,)), GroupSpan(17, 1, ())])  # one token has nothing to cut
    q, k, v = (x.detach()[None].to(dtype) for x in drawn(18))
    found = row.attend(0, q, k, v, AttentionArgs(None, None, None))
    assert [tiled_attention.tiles(span, HEADS * SIZE, 1.0) is not None for span in row.spans] == [
        True,
        False,
    ]
    assert found.dtype == dtype
    wanted = torch.cat([written_out(*(x[0, :, :17].double() for x in (q, k, v)), 9, (8,), SIZE**-0.5),
                        v[0, :, 17:].double().repeat_interleave(HEADS // KEY_HEADS, dim=0)], dim=1)  # fmt: skip
    assert float((found[0].double() - wanted).norm() / wanted.norm()) < (
        0.01 if dtype == torch.bfloat16 else 1e-5
    )


def test_values_of_another_size_are_not_tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSeek's attention with compressed keys has them."""
    monkeypatch.setattr(tiled_attention, "price", lambda x, masked: 1.0)
    row = TreeLayout([GroupSpan(0, 5, (8, 3))])
    q, k, v = (x[None] for x in drawn(16))
    found = row.attend(0, q, k, v[..., :6], AttentionArgs(None, None, None))
    wanted = row.attend(0, q, k, v, AttentionArgs(None, None, None))[..., :6]
    torch.testing.assert_close(found, wanted)


def test_long_groups_are_cut_and_short_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # tiles of the usual size
    assert tiled_attention.tiles(GroupSpan(0, 100, (60,)), 576, 1.0) is None
    assert tiled_attention.tiles(GroupSpan(0, 300, (300,)), 64, 1.0) is None, (
        "narrow heads make products cheap and tiles expensive"
    )
    found = tiled_attention.tiles(GroupSpan(0, 90, (180, 180)), 576, 1.0)
    assert found is not None
    assert [tile.stop for tile in found] == [90, 180, 270, 360, 450]
    assert tiled_attention.tiles(GroupSpan(0, 90, (180, 180)), 576, 1.45) == found


@pytest.mark.parametrize("responses", [(), (500,)])
def test_a_fast_fused_kernel_keeps_causal_groups(
    responses: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It skips the half that no query sees, and tiles cannot do better."""
    monkeypatch.undo()  # tiles of the usual size
    span = GroupSpan(0, 1000 - sum(responses), responses)
    assert tiled_attention.tiles(span, 576, 2.9) is None
    assert tiled_attention.tiles(span, 576, 1.0) is not None


def test_the_costs_depend_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused kernel is slow on AMD, and in bf16 on every processor that supports tiles of it."""
    monkeypatch.undo()  # tiles of the usual size
    span = GroupSpan(0, 300, (300,))
    used = {}
    for amd in (True, False):
        monkeypatch.setattr(capabilities, "is_amd", lambda amd=amd: amd)
        for dtype in (torch.float32, torch.bfloat16):
            price = tiled_attention.price(torch.zeros(1, dtype=dtype), masked=False)
            used[amd, dtype] = tiled_attention.tiles(span, 576, price) is not None
    assert used == {
        (True, torch.float32): True,
        (True, torch.bfloat16): True,
        (False, torch.float32): False,
        (False, torch.bfloat16): True,
    }


@pytest.mark.parametrize(
    ("args", "tiled"),
    [
        (AttentionArgs(None, None, None), True),
        (AttentionArgs(0.7, None, None), True),
        (AttentionArgs(None, 13, None), True),  # a window as long as the longest sequence
        (AttentionArgs(None, 12, None), False),
        (AttentionArgs(None, None, 30.0), False),
    ],
)
def test_windows_and_caps_are_not_tiled(
    args: AttentionArgs, tiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[int] = []
    original = tiled_attention.attention

    def counted(*inputs: object) -> Tensor:
        called.append(1)
        return original(*inputs)  # type: ignore[arg-type]

    monkeypatch.setattr(tiled_attention, "attention", counted)
    monkeypatch.setattr(tiled_attention, "price", lambda x, masked: 1.0)
    row = TreeLayout([GroupSpan(0, 5, (8, 3)), GroupSpan(16, 13, ())])
    q, k, v = (x[None] for x in drawn(29))
    found = row.attend(0, q, k, v, args)
    assert bool(called) is tiled
    for span in row.spans:
        part = slice(span.start, span.start + span.length)
        mask = attention.group_mask(span, args, q.device, q.dtype)
        wanted = attention.attention(q[:, :, part], k[:, :, part], v[:, :, part], mask, args)
        torch.testing.assert_close(found[:, :, part], wanted)


@pytest.mark.slow
@torch.no_grad()
def test_tiles_are_as_close_to_fp32_as_the_fused_kernel_in_bf16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a real model the two differ by 3% in bf16; fp32 shows that neither is worse."""
    import alignkit_plugins.models.smollm2
    from alignkit.io.text import cache_folder
    from alignkit.models.shared_model import BASE, SharedModel
    from alignkit.settings import ModelSpec

    monkeypatch.setattr(capabilities, "multiplies_bf16", lambda device: True)
    source = str(alignkit_plugins.models.smollm2.source(cache_folder()))
    ids = torch.linspace(10_000, 49_000, 24).long()
    groups = [GroupSpan(0, 5, (6, 3)), GroupSpan(14, 4, (6,))]
    found = {}
    for dtype in ("float32", "bfloat16"):
        policy = SharedModel(ModelSpec(base=source, dtype=dtype, device="cpu"), source)  # type: ignore[arg-type]
        assert policy.packs, policy.unpacked_because
        for tiled in (False, True):
            price = 1.0 if tiled else float("inf")
            monkeypatch.setattr(tiled_attention, "price", lambda x, masked, price=price: price)
            found[dtype, tiled] = policy.hidden(BASE, TreeLayout(groups), ids).float()
    exact = found["float32", False]
    assert float((found["float32", True] - exact).norm() / exact.norm()) < 1e-4
    tiled, fused = (
        float((found["bfloat16", tiled] - exact).norm() / exact.norm()) for tiled in (True, False)
    )
    assert fused < 0.2
    assert tiled < 1.25 * fused
