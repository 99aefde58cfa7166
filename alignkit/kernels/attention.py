"""Attention over packed rows: several groups side by side in one row, each prompt computed once for its responses.

A model loaded with `attn_implementation="alignkit"` asks the current `Layout` how its tokens may see each other, so
padding never exists and a response's tokens see their prompt and themselves. Transformers builds no mask of its own
for an implementation it does not know, which is what makes this exact for any model that uses its attention
interface. `Decoding` is the same for sampling: one new token a row against a preallocated cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from alignkit.kernels import tiled_attention

NAME = "alignkit"
BLOCK = 32  # rows that are decoded with one call of the attention


class Layout(Protocol):
    """How the tokens of a forward pass see each other."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, how: AttentionArgs) -> Tensor:
        """q: [rows, heads, tokens, size], k and v with their own number of heads -> [rows, heads, tokens, size]."""
        ...


@dataclass(frozen=True)
class AttentionArgs:
    """What a layer wants: scale of the products, sliding window in tokens, soft cap of the products."""

    scaling: float | None
    window: int | None
    softcap: float | None


_layout: ContextVar[Layout] = ContextVar("alignkit_layout")


@contextmanager
def using(layout: Layout) -> Iterator[None]:
    """Forward passes inside see their tokens by `layout`."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


def _interface(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    how = AttentionArgs(scaling, sliding_window, softcap)
    out = _layout.get().attend(module.layer_idx, query, key, value, how)  # type: ignore[arg-type]
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, _interface)


@dataclass(frozen=True)
class GroupSpan:
    """One group in a packed row: where it starts, its prompt's length and its responses' lengths, in tokens."""

    start: int
    prompt: int
    responses: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.prompt + sum(self.responses)

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest response."""
        return self.prompt + max(self.responses, default=0)

    @property
    def as_rows(self) -> bool:
        """Whether responses beside each other, filled up to the longest, take clearly fewer products than one mask
        over all tokens.
        """
        longest = max(self.responses, default=0)
        beside = self.prompt**2 + len(self.responses) * longest * (self.prompt + longest)
        return len(self.responses) > 1 and min(self.prompt, *self.responses) > 0 and 2 * beside < self.length**2

    def positions(self) -> Tensor:
        """Position of each token in its own sequence, [length]: every response continues the prompt."""
        parts = [torch.arange(self.prompt)]
        parts += [torch.arange(self.prompt, self.prompt + n) for n in self.responses]
        return torch.cat(parts)


@dataclass
class TreeLayout:
    """Segments in one row of tokens; nothing sees another segment, responses see their prompt and themselves.

    `keep`: store each layer's keys and values (sampling starts from them), [heads, tokens, size] each. `costs`: of
    attention by tiles; None: what they are on this machine.
    """

    segments: Sequence[GroupSpan]
    keep: bool = False
    costs: tiled_attention.CostModel | None = None
    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    windows: set[int | None] = field(default_factory=set)  # that layers asked for
    _masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)
    _orders: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict)
    _indices: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _tiles: dict[tuple[int, int], list[tiled_attention.Tile] | None] = field(default_factory=dict)

    @property
    def position_ids(self) -> Tensor:
        """[1, tokens]."""
        return torch.cat([segment.positions() for segment in self.segments])[None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, how: AttentionArgs) -> Tensor:
        if self.keep:
            self.kept[layer] = (k[0].detach(), v[0].detach())
        self.windows.add(how.window)
        dtype = q.dtype
        # Split, not sliced: the backward of each slice would write a gradient as long as the whole row.
        lengths = [segment.length for segment in self.segments]
        qs, ks, vs = (x.split(lengths, dim=2) for x in (q, k, v))
        parts = [
            self._segment(index, segment, qs[index], ks[index], vs[index], how)
            for index, segment in enumerate(self.segments)
        ]
        return torch.cat([part.to(dtype) for part in parts], dim=2)

    def _segment(self, index: int, segment: GroupSpan, q: Tensor, k: Tensor, v: Tensor, how: AttentionArgs) -> Tensor:
        """One group's attention, [1, heads, length, size]."""
        if found := self._tiles_of(index, segment, (q, k, v), how):
            return tiled_attention.attention(q[0], k[0], v[0], found, how.scaling)[None]
        if q.device.type == "cpu" and q.dtype == torch.bfloat16:
            q, k, v = q.float(), k.float(), v.float()  # the fused kernel is twice as fast in fp32 there
        if segment.as_rows:
            return self._rows(index, segment, q, k, v, how)
        return attention(q, k, v, self._mask(index, segment, how.window, q.device), how)

    def _tiles_of(
        self, index: int, segment: GroupSpan, given: tuple[Tensor, Tensor, Tensor], how: AttentionArgs
    ) -> list[tiled_attention.Tile] | None:
        """None where another way is faster, or the only one."""
        q = given[0]
        alike = len({(x.shape[-1], x.dtype) for x in given}) == 1  # values may have another size than queries
        limited = how.softcap is not None or (how.window is not None and how.window < segment.longest)
        if segment.as_rows or limited or not alike or not tiled_attention.fast(q):
            return None
        key = (index, q.shape[1] * q.shape[3])
        if key not in self._tiles:
            self._tiles[key] = tiled_attention.tiles(segment, key[1], self.costs or tiled_attention.costs(q))
        return self._tiles[key]

    def _rows(self, index: int, segment: GroupSpan, q: Tensor, k: Tensor, v: Tensor, how: AttentionArgs) -> Tensor:
        """The prompt by itself, then its responses as rows beside each other, each behind the prompt's keys: a mask
        over the whole segment would cost products between responses that do not see each other.
        """
        place, back = self._places(index, segment, q.device)
        count, longest = len(segment.responses), max(segment.responses)
        (q, own_q), (k, own_k), (v, own_v) = (
            x.split([segment.prompt, x.shape[2] - segment.prompt], dim=2) for x in (q, k, v)
        )
        first = attention(q, k, v, self._causal(segment.prompt, 0, how.window, q.device), how)
        # [1, heads, tokens, size] -> [responses, heads, longest, size]; places behind a short response are never read
        own_q, own_k, own_v = (
            x[0].index_select(1, place).unflatten(1, (count, longest)).transpose(0, 1) for x in (own_q, own_k, own_v)
        )
        k, v = (torch.cat([x.expand(count, -1, -1, -1), own], dim=2) for x, own in ((k, own_k), (v, own_v)))
        out = attention(own_q, k, v, self._causal(longest, segment.prompt, how.window, q.device), how)
        out = out.transpose(0, 1).flatten(1, 2).index_select(1, back)
        return torch.cat([first, out[None]], dim=2)

    def _places(self, index: int, segment: GroupSpan, device: torch.device) -> tuple[Tensor, Tensor]:
        """Where each place of [responses, longest] is in the segment's responses, and the way back."""
        if index not in self._indices:
            lengths = torch.tensor(segment.responses)
            longest = int(lengths.max())
            starts = lengths.cumsum(0) - lengths
            offsets = torch.arange(longest)
            place = starts[:, None] + torch.minimum(offsets[None], lengths[:, None] - 1)
            back = (offsets[None] < lengths[:, None]).flatten().nonzero()[:, 0]
            self._indices[index] = (place.flatten().to(device), back.to(device))
        return self._indices[index]

    def _causal(self, queries: int, before: int, window: int | None, device: torch.device) -> Tensor | None:
        """[queries, before + queries] true where a query sees a key, `before` keys standing before the first query;
        None: plain causal order says it all.
        """
        if window is not None and window >= before + queries:
            window = None
        if before == 0 and window is None:
            return None
        key = (queries, before, window)
        if key not in self._orders:
            distance = torch.arange(before, before + queries)[:, None] - torch.arange(before + queries)[None]
            sees = distance >= 0
            self._orders[key] = (sees if window is None else sees & (distance < window)).to(device)
        return self._orders[key]

    def _mask(self, index: int, segment: GroupSpan, window: int | None, device: torch.device) -> Tensor | None:
        """[length, length] true where a query may see a key; None: plain causal order says it all."""
        if window is not None and window >= segment.longest:
            window = None
        if len(segment.responses) <= 1 and window is None:
            return None
        key = (index, window)
        if key not in self._masks:
            sees = torch.ones(segment.length, segment.length, dtype=torch.bool).tril_()
            start = segment.prompt
            for length in segment.responses:
                sees[start : start + length, segment.prompt : start] = False
                start += length
            if window is not None:
                position = segment.positions()
                sees &= position[:, None] - position[None] < window
            self._masks[key] = sees.to(device)
        return self._masks[key]


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, how: AttentionArgs) -> Tensor:
    """Scaled dot-product attention, [rows, heads, tokens, size]; mask true where a query sees a key, None: causal."""
    if how.softcap is not None:  # the fused kernel knows none
        return _capped_attention(q, k, v, mask, how)
    grouped = q.shape[1] != k.shape[1]
    if grouped and mask is not None and q.device.type == "cuda":
        # With a mask and grouped heads CUDA has no fused kernel, and would keep all products for backward.
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        grouped = False
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=how.scaling, enable_gqa=grouped
    )


def _capped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, how: AttentionArgs) -> Tensor:
    """The same by two products with the softmax in fp32, the scores held within +-softcap by tanh (Gemma 2)."""
    assert how.softcap is not None
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scale = how.scaling if how.scaling is not None else q.shape[-1] ** -0.5
    scores = torch.tanh((q @ k.transpose(-1, -2)).float() * scale / how.softcap) * how.softcap
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    return torch.softmax(scores.masked_fill(~mask, float("-inf")), dim=-1).to(q.dtype) @ v


class Decoding:
    """One new token a row. Rows keep what they have right-aligned before `column`, so all rows write the same column
    and the only mask is the empty space left of the shorter ones. Rows leave and enter while others go on; those beside
    each other are of like lengths, so a block of them leaves out most of that space.
    """

    def __init__(self) -> None:
        self.column = 0
        self.starts = torch.zeros(0, dtype=torch.int64)
        self.cache: dict[int, tuple[Tensor, Tensor]] = {}
        self._blocks: list[tuple[slice, int]] = []  # rows beside each other, and the first column that one of them has
        self._sees: dict[int | None, Tensor] = {}

    def change_rows(
        self, keep: Sequence[int], room: int, prefill: TreeLayout | None = None, owners: Sequence[int] = ()
    ) -> None:
        """Rows not in `keep` leave, and behind the others new ones enter: owners[i] is the segment of `prefill`, which
        has kept its prompts' keys and values, that new row i continues. room: tokens that rows may still write.
        """
        entering = [prefill.segments[owner] for owner in owners] if prefill is not None else []
        kept = self.starts[list(keep)]
        first = int(kept.min()) if len(kept) else self.column  # what lies before it belongs to rows that leave
        column = max(self.column - first, *(segment.prompt for segment in entering), 0)
        stored = prefill.kept if prefill is not None else {}
        for layer in list(self.cache or stored):  # one after the other: only one layer is there twice
            keys = self._moved(layer, 0, keep, first, column, room, stored, entering)
            self.cache[layer] = (keys, self._moved(layer, 1, keep, first, column, room, stored, entering))
        new = torch.tensor([column - segment.prompt for segment in entering], dtype=torch.int64)
        self.starts = torch.cat([kept + column - self.column, new])
        self.column = column
        self._blocks = [
            (slice(row, row + BLOCK), int(self.starts[row : row + BLOCK].min()))
            for row in range(0, len(self.starts), BLOCK)
        ]
        self._sees.clear()

    def _moved(
        self,
        layer: int,
        which: int,
        keep: Sequence[int],
        first: int,
        column: int,
        room: int,
        stored: dict[int, tuple[Tensor, Tensor]],
        entering: Sequence[GroupSpan],
    ) -> Tensor:
        """Keys (0) or values (1) of a layer for the rows that stay and those that enter, right-aligned at `column`."""
        like = self.cache[layer][which][0] if layer in self.cache else stored[layer][which]  # [heads, columns, size]
        rows = like.new_zeros(len(keep) + len(entering), like.shape[0], column + room, like.shape[-1])
        if len(keep):
            old = self.cache[layer][which][:, :, first : self.column]
            rows[: len(keep), :, column - old.shape[2] : column] = old[list(keep)]
        for row, segment in enumerate(entering, len(keep)):
            cut = stored[layer][which][:, segment.start : segment.start + segment.prompt]
            rows[row, :, column - segment.prompt : column] = cut
        return rows

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, how: AttentionArgs) -> Tensor:
        keys, values = self.cache[layer]
        keys[:, :, self.column] = k[:, :, 0]
        values[:, :, self.column] = v[:, :, 0]
        mask = self._mask(how.window, q.device)
        rows, heads, _, size = q.shape
        # The query heads that share a key head stand as its queries: no copy of the keys, one product a key head.
        q = q.view(rows, k.shape[1], heads // k.shape[1], size)
        parts = [
            attention(q[block], keys[block, :, seen], values[block, :, seen], mask[block, :, :, seen], how)
            for block, seen in ((block, slice(first, self.column + 1)) for block, first in self._blocks)
        ]
        return torch.cat(parts).reshape(rows, heads, 1, -1)  # values may have another size than queries

    def _mask(self, window: int | None, device: torch.device) -> Tensor:
        """[rows, 1, 1, column + 1] true where a row sees a column."""
        if window not in self._sees:
            columns = torch.arange(self.column + 1)[None]
            sees = columns >= self.starts[:, None]
            if window is not None:
                sees &= columns > self.column - window
            self._sees[window] = sees[:, None, None].to(device)
        return self._sees[window]

    def advance(self) -> None:
        """The token of this column is complete in all layers."""
        self.column += 1
        self._sees.clear()
