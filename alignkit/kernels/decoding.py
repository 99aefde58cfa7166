"""Attention for sampling: one new token per slot against a preallocated cache.

The slots of the cache are right-aligned, so all of them write their next token to the same column.
The only mask is the empty space to the left of the shorter ones.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from alignkit.kernels.layout import AttentionArgs, GroupSpan
from alignkit.kernels.plain_attention import attention

BLOCK = 32  # slots that one call of the attention decodes

KeyValues = dict[int, tuple[Tensor, Tensor]]  # by layer


class Prefill(Protocol):
    """Prompts that were read, with each layer's keys and values, [heads, tokens, size] each."""

    spans: Sequence[GroupSpan]
    kv: KeyValues


class Decoding:
    """A `Layout` that attends with one new token per slot to all that the slot has so far.

    Slots leave and enter while others continue. Neighbors should have similar lengths: slots are
    decoded in blocks, and a block skips the columns that all of its slots leave empty.

    ahead: tokens of a slot that are written before anybody looks at them.
    """

    ahead: ClassVar[int] = 1

    def __init__(self) -> None:
        self.column = 0  # the place of every slot's next token
        self.starts = torch.zeros(0, dtype=torch.int64)  # [slots], first column of each
        self.cache: KeyValues = {}  # [slots, heads, columns, size] each
        # Slots, and the first column that any of them fills
        self._blocks: list[tuple[slice, int]] = []
        # Masks of the present column, by the layer's window
        self._masks: dict[Hashable, Tensor] = {}

    def update_slots(
        self,
        keep: Sequence[int],
        room: int,
        prefill: Prefill | None = None,
        owners: Sequence[int] = (),
    ) -> None:
        """Drop all slots but `keep`, then append one for each of `owners`: the prompt's index in
        `prefill.spans`.

        prefill: has stored its prompts' keys and values. room: tokens that a slot may still write.
        """
        entering = prefill.kv if prefill else {}
        prompts = [prefill.spans[owner] for owner in owners] if prefill else []
        kept = self.starts[list(keep)]
        # Columns that only dropped slots had filled disappear.
        first = int(kept.min()) if len(kept) else self.column
        column = max(self.column - first, *(span.prompt for span in prompts), 0)
        for layer, (keys, values) in entering.items():  # a layer without a cache has no slots yet
            self.cache.setdefault(layer, (keys[None][:0], values[None][:0]))
        device, used = self.cache[min(self.cache)][0].device, slice(first, self.column)
        remain = torch.tensor(list(keep), dtype=torch.int64, device=device)
        end, enter = column + self._allocated(column, room), self.entering(prompts, column, device)

        def followed(old: Tensor, new: Tensor | None) -> Tensor:
            # Not empty: masked columns enter the product with weight 0, and 0 times a leftover nan
            # is nan.
            cache = old.new_zeros(len(kept) + len(prompts), old.shape[1], end, old.shape[-1])
            if len(kept):
                there = old[:, :, used].index_select(0, remain)
                cache[: len(kept), :, column - there.shape[2] : column] = there
            if new is not None:
                enter(cache[len(kept) :], new)
            return cache

        # One tensor at a time, so that only one layer is in memory twice.
        for layer, (keys, values) in self.cache.items():
            new_keys, new_values = entering.get(layer, (None, None))
            self.cache[layer] = followed(keys, new_keys), followed(values, new_values)
        entered = torch.tensor([column - span.prompt for span in prompts], dtype=torch.int64)
        # Kept slots stay aligned on the right, so their first columns move with their last column.
        self.starts = torch.cat([kept + column - self.column, entered])
        self.column = column
        self._blocks = [
            (slice(slot, slot + BLOCK), int(self.starts[slot : slot + BLOCK].min()))
            for slot in range(0, len(self.starts), BLOCK)
        ]
        self._masks.clear()

    def entering(
        self, prompts: Sequence[GroupSpan], column: int, device: torch.device
    ) -> Callable[[Tensor, Tensor], None]:
        """What writes the tokens of a prefill [heads, tokens, size] into the slots that enter [slots,
        heads, columns, size], so that each prompt ends before `column`. It is asked once for all
        layers.
        """

        def enter(slots: Tensor, prefill: Tensor) -> None:
            for slot, span in zip(slots, prompts, strict=True):
                slot[:, column - span.prompt : column] = prefill[
                    :, span.start : span.start + span.prompt
                ]

        return enter

    def _allocated(self, column: int, room: int) -> int:
        """Columns to allocate after `column`, of which `room` are needed."""
        return room

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs) -> Tensor:
        """Attention of one token per slot, [slots, heads, 1, size] -> [slots, heads, 1, size of v]."""
        keys, values = self.cache[layer]
        # Before attending, as a token sees itself. In place: all slots write one column, with no
        # copy of the cache.
        keys[:, :, self.column] = k[:, :, 0]
        values[:, :, self.column] = v[:, :, 0]
        mask = self._mask(args.window, q.device)
        slots, heads, _, size = q.shape
        # The query heads that share a key head become its queries: one product per key head, and no
        # copy of the keys.
        q = q.view(slots, k.shape[1], heads // k.shape[1], size)
        parts = []
        for block, first in self._blocks:
            seen = slice(first, self.column + 1)
            parts.append(
                attention(
                    q[block],
                    keys[block, :, seen],
                    values[block, :, seen],
                    mask[block, ..., seen],
                    args,
                )
            )
        # Values may differ in size from queries
        return torch.cat(parts).reshape(slots, heads, 1, -1)

    def _mask(self, window: int | None, device: torch.device) -> Tensor:
        """[slots, 1, 1, column + 1], true if a slot sees a column."""
        if window not in self._masks:
            columns = torch.arange(self.column + 1)[None]
            sees = columns >= self.starts[:, None]
            if window is not None:
                sees &= columns > self.column - window  # the token itself is part of its window
            self._masks[window] = sees[:, None, None].to(device)
        return self._masks[window]

    def advance(self) -> None:
        """Move to the next column; all layers have written this one."""
        self.column += 1
        self._masks.clear()
