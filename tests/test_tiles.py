"""Attention by tiles against attention written out, over all tokens at once with a mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from alignkit import attention, tiles
from alignkit.attention import How, Packed, Segment

HEADS, KEY_HEADS, SIZE = 4, 2, 8
# Prompts alone, a response alone, responses of like and unlike lengths, an empty one.
GROUPS = [(9, ()), (0, (11,)), (6, (7,)), (5, (8, 3)), (1, (1, 9)), (7, (0, 6, 5))]


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "QUERIES", 4)
    monkeypatch.setattr(tiles, "SETUP", 0)


def drawn(length: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = [(HEADS, length, SIZE), (KEY_HEADS, length, SIZE), (KEY_HEADS, length, SIZE)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def written_out(q: Tensor, k: Tensor, v: Tensor, prompt: int, responses: tuple[int, ...], scale: float) -> Tensor:
    """Token by token: a key is seen if it is of the prompt or of the same response, and not behind the query."""
    owner = [-1] * prompt + [index for index, length in enumerate(responses) for _ in range(length)]
    out = torch.zeros_like(q)
    for head in range(HEADS):
        of = head * KEY_HEADS // HEADS
        for at, own in enumerate(owner):
            seen = [key for key in range(at + 1) if owner[key] in (-1, own)]
            shares = torch.softmax(scale * (k[of, seen] @ q[head, at]), dim=0)
            out[head, at] = shares @ v[of, seen]
    return out


@pytest.mark.parametrize(("prompt", "responses"), GROUPS)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_values_and_gradients(prompt: int, responses: tuple[int, ...], scale: float | None) -> None:
    segment = Segment(0, prompt, responses)
    q, k, v = drawn(segment.length)
    used = tiles.tiles(segment, HEADS * SIZE)
    assert used is not None
    assert len(used) > 1
    found = tiles.attention(q, k, v, used, scale)
    wanted = written_out(q, k, v, prompt, responses, SIZE**-0.5 if scale is None else scale)
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(1))
    for mine, theirs in zip(*(torch.autograd.grad(out, (q, k, v), upstream) for out in (found, wanted)), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("prompt", "responses"), GROUPS)
def test_every_query_is_in_one_tile(prompt: int, responses: tuple[int, ...]) -> None:
    used = tiles.tiles(Segment(0, prompt, responses), HEADS * SIZE)
    assert used is not None
    queries = [query for tile in used for query in range(tile.start, tile.stop)]
    assert queries == list(range(prompt + sum(responses)))
    assert max(tile.stop - tile.start for tile in used) <= tiles.QUERIES


def test_bf16_is_near_what_it_rounds() -> None:
    segment = Segment(0, 5, (8, 3))
    q, k, v = drawn(segment.length, torch.bfloat16)
    used = tiles.tiles(segment, HEADS * SIZE)
    assert used is not None
    upstream = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    results = []
    for dtype in (torch.bfloat16, torch.float64):
        given = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
        out = tiles.attention(given[0], given[1], given[2], used, None)
        results.append([out, *torch.autograd.grad(out, given, upstream.to(dtype))])
        assert all(x.dtype == dtype for x in results[-1])
    for mine, theirs in zip(*results, strict=True):
        assert float((mine.double() - theirs).detach().norm() / theirs.detach().norm()) < 0.01


def test_long_groups_are_cut_and_short_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "QUERIES", 128)
    monkeypatch.setattr(tiles, "SETUP", 3_000_000)
    assert tiles.tiles(Segment(0, 100, (60,)), 576) is None
    assert tiles.tiles(Segment(0, 300, (300,)), 64) is None, "narrow heads make products cheap and tiles dear"
    found = tiles.tiles(Segment(0, 90, (180, 180)), 576)
    assert found is not None
    assert [tile.stop for tile in found] == [90, 180, 270, 360, 450]


@pytest.mark.parametrize(
    ("how", "tiled"),
    [
        (How(None, None, None), True),
        (How(None, 13, None), True),  # a window as long as the longest sequence
        (How(None, 12, None), False),
        (How(None, None, 30.0), False),
    ],
)
def test_windows_and_caps_take_another_way(how: How, tiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    own = tiles.attention

    def counted(*args: object) -> Tensor:
        called.append(1)
        return own(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(tiles, "attention", counted)
    row = Packed([Segment(0, 5, (8, 3)), Segment(16, 13, ())])
    q, k, v = (x[None] for x in drawn(29))
    found = row.attend(0, q, k, v, how)
    assert bool(called) is tiled
    for index, segment in enumerate(row.segments):
        part = slice(segment.start, segment.start + segment.length)
        mask = row._mask(index, segment, how.window, q.device)
        wanted = attention.attention(q[:, :, part], k[:, :, part], v[:, :, part], mask, how)
        torch.testing.assert_close(found[:, :, part], wanted)
