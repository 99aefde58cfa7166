"""Attention for sampling: one new token per row against a preallocated cache.

The rows of the cache are right-aligned, so all of them write their next token to the same column. The only mask is the
empty space to the left of the shorter ones.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit.kernels.attention import TreeLayout, attention
from alignkit.kernels.layout import AttentionArgs, GroupSpan

BLOCK, BLOCK_ON_GPU = 32, 256  # rows that one call of the attention decodes
STEP = 128  # columns by which those that a GPU attends to grow

KeyValues = dict[int, tuple[Tensor, Tensor]]  # of each layer


@dataclass(frozen=True)
class _Change:
    """Which rows of a cache remain and which prompts enter.

    keep: [kept] rows that remain. used: the columns that they fill. prompts: of the rows that enter behind them.
    column: where all rows end afterwards. room: columns to allocate after it.
    """

    keep: Tensor
    used: slice
    prompts: Sequence[GroupSpan]
    column: int
    room: int

    def applied(self, old: Tensor | None, prefill: Tensor | None) -> Tensor:
        """The cache that follows, of rows [rows, heads, columns, size] and of a prefill [heads, tokens, size]."""
        like = old[0] if old is not None else prefill
        assert like is not None  # a layer without a cache has been prefilled
        kept, column = len(self.keep), self.column
        # Not empty: masked columns enter the product with weight 0, and 0 times a leftover nan is nan.
        new = like.new_zeros(kept + len(self.prompts), like.shape[0], column + self.room, like.shape[-1])
        if old is not None and kept:
            values = old[:, :, self.used].index_select(0, self.keep)
            new[:kept, :, column - values.shape[2] : column] = values
        if prefill is not None and new.device.type != "cpu":
            # Some calls for all rows: on a GPU a call costs more than the bytes that empty cells add.
            padded = F.pad(prefill, (0, 0, 0, 1))  # a token of zeros, behind all others
            new[kept:, :, :column] = padded[:, self._cells].transpose(0, 1)
        elif prefill is not None:
            for row, span in zip(new[kept:], self.prompts, strict=True):
                row[:, column - span.prompt : column] = prefill[:, span.start : span.start + span.prompt]
        return new

    @cached_property
    def _cells(self) -> Tensor:
        """[entering rows, column]: the index of each cell's token in the prefill; empty cells have the last one."""
        cells = torch.full((len(self.prompts), self.column), -1)
        for row, span in zip(cells, self.prompts, strict=True):
            row[self.column - span.prompt :] = torch.arange(span.start, span.start + span.prompt)
        return cells.to(self.keep.device)


@dataclass(frozen=True)
class Extended:
    """A row of the cache that is continued.

    row, first: its row and its first column. cached: tokens that it keeps. new: tokens behind them.
    """

    row: int
    first: int
    cached: int
    new: int


@dataclass
class Extension(TreeLayout):
    """Rows of a cache with several new tokens each, side by side in one row of tokens; they see their own row only.

    `kv` and `spans` are afterwards those of the whole rows, as if all of their tokens had been read here. So the rows
    can enter the batch again (`Decoding.update_rows`), and what they had before is not computed a second time.
    """

    cache: KeyValues = field(default_factory=dict)
    parts: Sequence[Extended] = ()

    @property
    def position_ids(self) -> Tensor:
        """[1, tokens]."""
        return torch.cat([torch.arange(part.cached, part.cached + part.new) for part in self.parts])[None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs) -> Tensor:
        """Attention of the new tokens, [1, heads, tokens, size] -> [1, heads, tokens, size of v]."""
        self.windows.add(args.window)
        sizes = [part.new for part in self.parts]
        results, whole = [], []
        for part, q_new, k_new, v_new in zip(self.parts, *(x.split(sizes, dim=2) for x in (q, k, v)), strict=True):
            # A row fills its columns without gaps, so its first tokens are in its first columns.
            columns = slice(part.first, part.first + part.cached)
            old_keys, old_values = (stored[part.row, :, columns] for stored in self.cache[layer])
            keys, values = torch.cat([old_keys, k_new[0]], dim=1), torch.cat([old_values, v_new[0]], dim=1)
            whole.append((keys, values))  # before the conversion: the cache keeps the model's dtype
            if q.device.type == "cpu" and q.dtype == torch.bfloat16:
                # torch's kernel for CPUs is twice as fast in fp32
                q_new, keys, values = q_new.float(), keys.float(), values.float()
            mask = self._causal_mask(part.new, part.cached, args.window, q.device)
            results.append(attention(q_new, keys[None], values[None], mask, args).to(q.dtype))
        self.kv[layer] = (torch.cat([keys for keys, _ in whole], dim=1), torch.cat([v for _, v in whole], dim=1))
        return torch.cat(results, dim=2)


class Decoding:
    """A `Layout` that attends with one new token per row to all that the row has so far.

    Rows leave and enter while others continue. Neighbors should have similar lengths: rows are decoded in blocks, and a
    block skips the columns that all of its rows leave empty.
    """

    def __init__(self) -> None:
        self.column = 0  # where every row's next token goes
        self.starts = torch.zeros(0, dtype=torch.int64)  # [rows], first column of each
        self.cache: KeyValues = {}  # [rows, heads, columns, size] each
        self._blocks: list[tuple[slice, int]] = []  # rows, and the first column that any of them fills
        self._masks: dict[Hashable, Tensor] = {}  # of the present column, by the layer's window

    def update_rows(
        self, keep: Sequence[int], room: int, prefill: TreeLayout | None = None, owners: Sequence[int] = ()
    ) -> None:
        """Drop all rows but `keep`, then append one for each of `owners`: the prompt's index in `prefill.spans`.

        prefill: has stored its prompts' keys and values. room: tokens that a row may still write.
        """
        prompts = [prefill.spans[owner] for owner in owners] if prefill is not None else []
        kept = self.starts[list(keep)]
        # Columns that only dropped rows had filled disappear.
        first = int(kept.min()) if len(kept) else self.column
        column = max(self.column - first, *(span.prompt for span in prompts), 0)
        stored = prefill.kv if prefill is not None else {}
        held = next(iter((self.cache or stored).values()), None)
        device = held[0].device if held is not None else torch.device("cpu")
        change = _Change(
            keep=torch.tensor(list(keep), dtype=torch.int64, device=device),
            used=slice(first, self.column),
            prompts=prompts,
            column=column,
            room=self._allocated(column, room),
        )
        # One tensor at a time, so that only one layer is in memory twice.
        for layer in list(self.cache or stored):
            old, new = self.cache.get(layer), stored.get(layer)
            keys = change.applied(old and old[0], new and new[0])
            self.cache[layer] = keys, change.applied(old and old[1], new and new[1])
        entered = torch.tensor([column - span.prompt for span in prompts], dtype=torch.int64)
        # Kept rows stay aligned on the right, so their first columns move with their last column.
        self.starts = torch.cat([kept + column - self.column, entered])
        self.column = column
        size = BLOCK if device.type == "cpu" else BLOCK_ON_GPU
        self._blocks = [
            (slice(row, row + size), int(self.starts[row : row + size].min()))
            for row in range(0, len(self.starts), size)
        ]
        self._masks.clear()
        self._updated(device)

    def _allocated(self, column: int, room: int) -> int:
        """Columns to allocate after `column`, of which `room` are needed."""
        return room

    def _updated(self, device: torch.device) -> None:
        """Called when rows have left or entered."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs) -> Tensor:
        """Attention of one token per row, [rows, heads, 1, size] -> [rows, heads, 1, size of v]."""
        keys, values = self.cache[layer]
        # Before attending, as a token sees itself. In place: all rows write one column, with no copy of the cache.
        keys[:, :, self.column] = k[:, :, 0]
        values[:, :, self.column] = v[:, :, 0]
        mask = self._mask(args.window, q.device)
        rows, heads, _, size = q.shape
        # The query heads that share a key head become its queries: one product per key head, and no copy of the keys.
        q = q.view(rows, k.shape[1], heads // k.shape[1], size)
        parts = []
        for block, first in self._blocks:
            seen = slice(first, self.column + 1)
            parts.append(
                attention(q[block], keys[block, :, seen], values[block, :, seen], mask[block, ..., seen], args)
            )
        return torch.cat(parts).reshape(rows, heads, 1, -1)  # values may differ in size from queries

    def _mask(self, window: int | None, device: torch.device) -> Tensor:
        """[rows, 1, 1, column + 1], true if a row sees a column."""
        if window not in self._masks:
            columns = torch.arange(self.column + 1)[None]
            sees = columns >= self.starts[:, None]
            if window is not None:
                sees &= columns > self.column - window  # the token itself is part of its window
            self._masks[window] = sees[:, None, None].to(device)
        return self._masks[window]

    def extension(self, lengths: Mapping[int, tuple[int, int]]) -> Extension:
        """Rows with several new tokens each. lengths: row -> how many of its tokens stay, and how many are new."""
        parts = [Extended(row, int(self.starts[row]), cached, new) for row, (cached, new) in lengths.items()]
        sizes = [part.cached + part.new for part in parts]
        spans = [GroupSpan(end - size, size, ()) for end, size in zip(accumulate(sizes), sizes, strict=True)]
        return Extension(spans, store_kv=True, cache=self.cache, parts=parts)

    def advance(self) -> None:
        """Move to the next column; all layers have written this one."""
        self.column += 1
        self._masks.clear()


# GPUs: shapes that repeat from token to token, and no step that needs a number from the host. A GPU waits for the host
# to start each operator, so there is one call for all rows. They attend to a number of columns that grows by STEP; the
# mask hides those that are not filled yet. Where the next token goes is a number on the device.


class StaticDecoding(Decoding):
    """`Decoding` in one block of rows, on the device of the cache."""

    def __init__(self) -> None:
        super().__init__()
        self._place = torch.zeros(1, dtype=torch.int64)  # `column`, on the device
        self._firsts = self.starts  # [rows], `starts` on the device
        self._columns = torch.zeros(0, dtype=torch.int64)  # [columns], their numbers

    @property
    def attended(self) -> int:
        """Columns that the rows attend to, filled or not."""
        return (self.column // STEP + 1) * STEP  # at least one more than the column, which is an index

    def _allocated(self, column: int, room: int) -> int:
        # Up to a multiple of STEP, or `attended` could exceed the cache.
        return room + -(column + room) % STEP

    def _updated(self, device: torch.device) -> None:
        self._place = torch.tensor([self.column], device=device)
        self._firsts = self.starts.to(device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs) -> Tensor:
        """Attention of one token per row, [rows, heads, 1, size] -> [rows, heads, 1, size of v]."""
        keys, values = self.cache[layer]
        # By a tensor on the device: a number of the host would be another operator for every token.
        keys.index_copy_(2, self._place, k)
        values.index_copy_(2, self._place, v)
        rows, heads, _, size = q.shape
        # The query heads that share a key head become its queries: one product per key head, and no copy of the keys.
        q = q.view(rows, k.shape[1], heads // k.shape[1], size)
        keys, values = (x[:, :, : self.attended] for x in (keys, values))
        out = attention(q, keys, values, self._mask_of(args, q), args)
        return out.reshape(rows, heads, 1, -1)  # values may differ in size from queries

    def _mask_of(self, args: AttentionArgs, q: Tensor) -> Tensor:
        """[rows, 1, 1, columns]: true if a row sees a column, or what is added to its score if nothing caps that."""
        key = args.window if args.softcap is None else (args.window, "capped")
        if key not in self._masks:
            if len(self._columns) != self.attended:
                self._columns = torch.arange(self.attended, device=q.device)
            # [rows, columns]: neither the empty space on the left nor columns that are not written yet.
            sees = (self._columns >= self._firsts[:, None]) & (self._columns <= self._place)
            if args.window is not None:
                sees &= self._columns > self._place - args.window
            mask = sees[:, None, None]
            if args.softcap is None:  # converted here once, and not in every layer
                mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, float("-inf"))
            self._masks[key] = mask
        return self._masks[key]

    def advance(self) -> None:
        """Move to the next column; all layers have written this one."""
        super().advance()
        self._place += 1


def decoding_for(device: torch.device) -> Decoding:
    """How rows on this device are decoded."""
    return StaticDecoding() if device.type == "cuda" else Decoding()
