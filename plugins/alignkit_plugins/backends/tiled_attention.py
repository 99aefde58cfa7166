"""Attention of a long group on a CPU in tiles: some queries and the keys they attend to.

Given a mask, torch's fused kernel for CPUs computes all pairs of tokens. On AMD processors it also
reaches only a fifth of the rate of a product, in bf16 and in fp32. Here each tile is a few batched
products whose scores stay in the cache. The backward pass recomputes the attention weights, as in
FlashAttention (Dao et al. 2022, algorithm 4).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignkit.kernels.layout import GroupSpan
from alignkit_plugins.backends import processor

QUERIES = 128  # per tile at most: smaller tiles compute fewer masked pairs, but at a lower rate
# Pairs of tokens whose products take as long as a tile's setup, times the width of a query
SETUP = 3_000_000


def price(x: Tensor, *, masked: bool) -> float:
    """What a tile's pair of tokens costs on this processor for the dtype of x, in pairs of the
    fused kernel.

    masked: whether that kernel needs a mask. In causal order it skips half of the pairs.
    """
    if processor.is_amd() or x.dtype == torch.bfloat16:
        return 1.0
    return 1.45 if masked else 2.9


def supported(x: Tensor) -> bool:
    """Whether tiles work for this dtype: the processor multiplies it natively."""
    if x.dtype == torch.bfloat16:
        return processor.multiplies_bf16()
    return x.dtype in (torch.float32, torch.float64)


@dataclass(frozen=True)
class Tile:
    """The queries `start` to `stop` of a group.

    They see the first `prompt` tokens and, in causal order, those from `own`: the start of their
    response, or of the prompt for the prompt's own queries.
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
        """The tile's keys or values: [heads, tokens, size] -> [heads, keys, size]."""
        own = x[:, self.own : self.stop]
        if self.prompt:
            return torch.cat([x[:, : self.prompt], own], dim=1)
        return own

    def add_to_keys(self, x: Tensor, gradient: Tensor) -> None:
        """Add [heads, keys, size] to the tokens that `keys` took."""
        x[:, : self.prompt] += gradient[:, : self.prompt]
        x[:, self.own : self.stop] += gradient[:, self.prompt :]


def tiles(span: GroupSpan, width: int, price: float) -> list[Tile] | None:
    """Tiles that cover every query of a group once; None if the fused kernel is faster.

    width: the size of a query over all heads. price: see `price`.
    """
    parts = _cut(0, span.prompt, 0)
    end = span.prompt
    for length in span.responses:
        parts += _cut(end, end + length, span.prompt)
        end += length
    if price * sum(tile.cost + SETUP // width for tile in parts) < span.length**2:
        return parts
    return None


def _cut(start: int, stop: int, prompt: int) -> list[Tile]:
    """Tiles of similar length for one sequence's own tokens."""
    count = max(1, math.ceil((stop - start) / QUERIES))
    bounds = [start + (stop - start) * part // count for part in range(count + 1)]
    return [Tile(first, last, prompt, start) for first, last in pairwise(bounds) if last > first]


def attention(
    q: Tensor, k: Tensor, v: Tensor, tiles: Sequence[Tile], scale: float | None
) -> Tensor:
    """Scaled dot-product attention of a group: q [heads, tokens, size], k and v with at most as
    many heads.

    bfloat16, float32 or float64. Scores and softmax are at least float32. For bf16 inputs all other
    products are bf16.
    """
    out: Tensor = _TiledAttention.apply(
        q, k, v, tiles, q.shape[-1] ** -0.5 if scale is None else scale
    )
    return out


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, tiles: Sequence[Tile], scale: float
    ) -> Tensor:
        ctx.tiles, ctx.scale = tiles, scale
        out = _empty_by_token(q, q.dtype)
        # Converted once for all tiles; scores of bf16 inputs are computed in fp32.
        wide_k = k.to(_wide(k))
        workspace = _workspace(tiles, q)
        for tile in tiles:
            probabilities = _probabilities(
                _queries(q, k, tile), tile.keys(wide_k), tile, scale, workspace
            )
            _scatter(out, torch.bmm(probabilities.to(v.dtype), tile.keys(v)), tile)
        ctx.save_for_backward(q, k, v)  # no weights, which backward computes again
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        wide_k = k.to(_wide(k))
        q_grad = _empty_by_token(q, q.dtype)  # not zeroed: every query is in one tile
        # Every tile adds to the prompt's keys, and sums in bf16 would lose digits.
        k_grad, v_grad = (
            _empty_by_token(k, wide_k.dtype).zero_(),
            _empty_by_token(v, wide_k.dtype).zero_(),
        )
        workspace = _workspace(ctx.tiles, q)
        for tile in ctx.tiles:
            queries, gradient = _queries(q, k, tile), _queries(upstream[0], k, tile)
            probabilities = _probabilities(queries, tile.keys(wide_k), tile, ctx.scale, workspace)
            # The query heads of a key head are rows of one product, which adds up their gradients.
            tile.add_to_keys(v_grad, torch.bmm(probabilities.to(v.dtype).transpose(1, 2), gradient))
            # The scores are spent, so their memory takes the gradient of the probabilities, and
            # then their own.
            grads = _product(gradient, tile.keys(v).transpose(1, 2), workspace[0])
            # The paper derives this from the outputs, which are rounded: inexact in bf16.
            torch.ops.aten._softmax_backward_data.out(
                grads, probabilities, -1, grads.dtype, grad_input=grads
            )
            score_grad = grads.mul_(ctx.scale).to(k.dtype)
            _scatter(q_grad, torch.bmm(score_grad, tile.keys(k)), tile)
            tile.add_to_keys(k_grad, torch.bmm(score_grad.transpose(1, 2), queries))
        return q_grad, k_grad.to(k.dtype), v_grad.to(v.dtype), None, None


def _workspace(tiles: Sequence[Tile], q: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for any tile's scores and probabilities; allocating it per tile costs more than the
    arithmetic.
    """
    largest = len(q) * max(tile.cost for tile in tiles)
    return q.new_empty(largest, dtype=_wide(q)), q.new_empty(largest, dtype=_wide(q))


def _product(a: Tensor, b: Tensor, workspace: Tensor) -> Tensor:
    """Batched a b, in the memory and dtype of `workspace`."""
    shape = (len(a), a.shape[1], b.shape[2])
    out = workspace[: math.prod(shape)].view(shape)
    # bmm cannot write another dtype than its inputs have.
    return torch.bmm(a, b, out=out) if a.dtype == out.dtype else out.copy_(torch.bmm(a, b))


def _probabilities(
    queries: Tensor, keys: Tensor, tile: Tile, scale: float, workspace: tuple[Tensor, Tensor]
) -> Tensor:
    """Attention weights of a tile, [key heads, query heads per key head x queries, keys]."""
    scores = _product(queries.to(keys.dtype), keys.transpose(1, 2), workspace[0]).mul_(scale)
    count = tile.stop - tile.start
    # [key heads, query heads of each, queries, keys]
    by_head = scores.view(len(keys), -1, count, keys.shape[1])
    by_head[..., -count:] += _causal_bias(count)  # the last keys are the queries' own tokens
    return torch.softmax(scores, dim=-1, out=workspace[1][: scores.numel()].view(scores.shape))


@functools.lru_cache(maxsize=QUERIES)
def _causal_bias(count: int) -> Tensor:
    """0 where a query sees a key and -inf elsewhere, for queries and their own keys, [count,
    count].
    """
    return torch.full((count, count), -math.inf).triu_(1)


def _queries(x: Tensor, k: Tensor, tile: Tile) -> Tensor:
    """A tile's queries, with the heads that share a key head one after another.

    [heads, tokens, size] -> [key heads, query heads per key head x queries, size].
    """
    return x[:, tile.start : tile.stop].reshape(len(k), -1, x.shape[2])


def _scatter(x: Tensor, values: Tensor, tile: Tile) -> None:
    """Write values of a tile's queries into [heads, tokens, size]: the inverse of `_queries`."""
    queries = x[:, tile.start : tile.stop]
    queries.copy_(values.reshape(queries.shape))


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _empty_by_token(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Empty [heads, tokens, size] whose memory is ordered by token, as a pack is."""
    return x.new_empty(x.shape[1], x.shape[0], x.shape[2], dtype=dtype).transpose(0, 1)
