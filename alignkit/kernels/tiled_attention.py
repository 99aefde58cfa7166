"""Attention of a long group on a CPU: tile by tile, a tile being some queries beside the keys that they can see.

torch's fused kernel for CPUs goes over all pairs of tokens where there is a mask, and on AMD's processors it multiplies
at a fifth of the rate that they reach, in bf16 as in fp32. Here every tile is a few batched products, whose scores stay
in the processor's cache and are computed a second time in backward, as in FlashAttention (Dao et al. 2022, algorithm
4).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignkit.kernels.matmul import amd, multiplies_bf16

if TYPE_CHECKING:
    from alignkit.kernels.attention import GroupSpan

QUERIES = 128  # of a tile at most: with fewer, less is computed that causal order forbids, but at a lower rate


@dataclass(frozen=True)
class CostModel:
    """What tiles cost, measured in pairs of tokens that the fused kernel goes over.

    setup: of a tile of its own, in pairs times the size of a query over all heads. pair: of a query beside a key.
    causal: the same where plain causal order says it all; that the kernel then leaves out half of the pairs counts in.
    """

    setup: int
    pair: float
    causal: float


USUAL = CostModel(3_000_000, 1.45, 2.9)
WHERE_FUSED_IS_SLOW = CostModel(3_000_000, 1.0, 1.0)
NOTHING = CostModel(0, 1.0, 1.0)  # every group is cut that can be


def costs(x: Tensor) -> CostModel:
    """On this processor, for numbers like x."""
    return WHERE_FUSED_IS_SLOW if amd() or x.dtype == torch.bfloat16 else USUAL


@dataclass(frozen=True)
class Tile:
    """The queries `start` to `stop` of a group. They see the first `prompt` tokens and, in causal order, those from
    `own`, where their response or the prompt itself begins.
    """

    start: int
    stop: int
    prompt: int
    own: int

    @property
    def cost(self) -> int:
        """Pairs of a query and a key."""
        return (self.stop - self.start) * (self.prompt + self.stop - self.own)

    def keys(self, x: Tensor) -> Tensor:
        """Those of the tile, or their values: [heads, tokens, size] -> [heads, keys, size]."""
        own = x[:, self.own : self.stop]
        return torch.cat([x[:, : self.prompt], own], dim=1) if self.prompt else own

    def add_to_keys(self, x: Tensor, found: Tensor) -> None:
        """Add [heads, keys, size] where `keys` took them from."""
        x[:, : self.prompt] += found[:, : self.prompt]
        x[:, self.own : self.stop] += found[:, self.prompt :]


def tiles(segment: GroupSpan, width: int, costs: CostModel) -> list[Tile] | None:
    """Tiles that hold every query of a group once; None where the fused kernel is faster.

    width: size of a query, all heads together.
    """
    found = _cut(0, segment.prompt, 0)
    end = segment.prompt
    for length in segment.responses:
        found += _cut(end, end + length, segment.prompt)
        end += length
    pairs = sum(tile.cost + costs.setup // width for tile in found)
    price = costs.pair if len(segment.responses) > 1 else costs.causal
    return found if price * pairs < segment.length**2 else None


def _cut(start: int, stop: int, prompt: int) -> list[Tile]:
    """Tiles of like length."""
    parts = max(1, math.ceil((stop - start) / QUERIES))
    bounds = [start + (stop - start) * part // parts for part in range(parts + 1)]
    return [Tile(first, last, prompt, start) for first, last in pairwise(bounds) if last > first]


@functools.lru_cache(maxsize=QUERIES)
def _causal(count: int) -> Tensor:
    """0 where a query sees a key and -inf where not, queries beside their own keys, [count, count]."""
    return torch.full((count, count), -math.inf).triu_(1)


def attention(q: Tensor, k: Tensor, v: Tensor, tiles: Sequence[Tile], scale: float | None) -> Tensor:
    """Scaled dot-product attention of a group: q [heads, tokens, size], k and v with as many heads or fewer.

    bfloat16, float32 or float64. Scores and their softmax have at least fp32; in bf16 all products but the scores' own
    are in bf16.
    """
    found: Tensor = _Tiled.apply(q, k, v, tiles, q.shape[-1] ** -0.5 if scale is None else scale)
    return found


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, tiles: Sequence[Tile], scale: float) -> Tensor:
        ctx.tiles, ctx.scale = tiles, scale
        out = _like(q, q.dtype)
        wide = k.to(_wide(k))
        room = _room(tiles, q)
        for tile in tiles:
            shares = _shares(_queries(q, k, tile), tile.keys(wide), tile, scale, room)
            _put(out, torch.bmm(shares.to(v.dtype), tile.keys(v)), tile)
        ctx.save_for_backward(q, k, v)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        wide = k.to(_wide(k))
        to_q, to_k, to_v = _like(q, q.dtype), _like(k, wide.dtype).zero_(), _like(v, wide.dtype).zero_()
        room = _room(ctx.tiles, q)
        for tile in ctx.tiles:
            queries, gradient = _queries(q, k, tile), _queries(upstream[0], k, tile)
            shares = _shares(queries, tile.keys(wide), tile, ctx.scale, room)
            tile.add_to_keys(to_v, torch.bmm(shares.to(v.dtype).transpose(1, 2), gradient))
            to_shares = _product(gradient, tile.keys(v).transpose(1, 2), room[0])
            # By torch's own operator, in place: from rounded outputs, as in the paper, it would be inexact in bf16.
            torch.ops.aten._softmax_backward_data.out(to_shares, shares, -1, wide.dtype, grad_input=to_shares)
            to_scores = to_shares.mul_(ctx.scale).to(k.dtype)
            _put(to_q, torch.bmm(to_scores, tile.keys(k)), tile)
            tile.add_to_keys(to_k, torch.bmm(to_scores.transpose(1, 2), queries))
        return to_q, to_k.to(k.dtype), to_v.to(v.dtype), None, None


def _room(tiles: Sequence[Tile], q: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for the scores and the shares of any tile: fresh memory for each costs more than the sums done in it."""
    largest = len(q) * max(tile.cost for tile in tiles)
    return q.new_empty(largest, dtype=_wide(q)), q.new_empty(largest, dtype=_wide(q))


def _product(a: Tensor, b: Tensor, room: Tensor) -> Tensor:
    """Batched a b in the dtype of `room`, in its memory."""
    shape = (len(a), a.shape[1], b.shape[2])
    out = room[: math.prod(shape)].view(shape)
    return torch.bmm(a, b, out=out) if a.dtype == out.dtype else out.copy_(torch.bmm(a, b))


def _shares(queries: Tensor, keys: Tensor, tile: Tile, scale: float, room: tuple[Tensor, Tensor]) -> Tensor:
    """What share of a query's attention each key has, [key heads, query heads of one x queries, keys]."""
    scores = _product(queries.to(keys.dtype), keys.transpose(1, 2), room[0]).mul_(scale)
    count = tile.stop - tile.start
    scores.view(len(keys), -1, count, keys.shape[1])[..., -count:] += _causal(count)
    return torch.softmax(scores, dim=-1, out=room[1][: scores.numel()].view(scores.shape))


def fast(x: Tensor) -> bool:
    """Whether this is where tiles are of use: on a CPU that multiplies numbers of this dtype by itself."""
    if x.device.type != "cpu":
        return False
    return x.dtype in (torch.float32, torch.float64) or (x.dtype == torch.bfloat16 and multiplies_bf16())


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Empty [heads, tokens, size] that lies in memory token by token."""
    return x.new_empty(x.shape[1], x.shape[0], x.shape[2], dtype=dtype).transpose(0, 1)


def _queries(x: Tensor, k: Tensor, tile: Tile) -> Tensor:
    """Those of a tile, the heads that share a key head behind each other: [key heads, heads of one x queries, size]."""
    return x[:, tile.start : tile.stop].reshape(len(k), -1, x.shape[2])


def _put(x: Tensor, found: Tensor, tile: Tile) -> None:
    """Write what belongs to a tile's queries into [heads, tokens, size]: the way back from `_queries`."""
    own = x[:, tile.start : tile.stop]
    own.copy_(found.reshape(own.shape))
