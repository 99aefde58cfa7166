"""Sampling on a GPU: attention of one token per slot without waiting for the host.

A GPU waits for the host to start each operator. So shapes repeat from token to token, no step needs
a number from the host, and one call serves all slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit.kernels.decoding import Decoding
from alignkit.kernels.layout import AttentionArgs, GroupSpan
from alignkit.kernels.plain_attention import attention

STEP = 128  # columns by which those that slots attend to grow


class StaticDecoding(Decoding):
    """`Decoding` in one block of slots, on the device of the cache.

    Slots attend to a number of columns that grows by STEP; the mask hides those that are not filled
    yet. Where the next token goes is a number on the device.
    """

    ahead = 8  # the GPU would stand idle while the host looks

    def __init__(self) -> None:
        super().__init__()
        self._place = torch.zeros(1, dtype=torch.int64)  # `column`, on the device
        self._firsts = self.starts  # [slots], `starts` on the device
        self._columns = torch.zeros(0, dtype=torch.int64)  # [columns], their numbers

    @property
    def attended(self) -> int:
        """Columns that the slots attend to, filled or not."""
        # At least one more than the column, which is an index
        return (self.column // STEP + 1) * STEP

    def entering(
        self, prompts: Sequence[GroupSpan], column: int, device: torch.device
    ) -> Callable[[Tensor, Tensor], None]:
        """See `Decoding.entering`. Some calls for all slots: a call costs more than the bytes that
        empty cells add.
        """
        # [entering slots, column]: the index of each cell's token in the prefill; empty cells have
        # the last one.
        table = torch.full((len(prompts), column), -1)
        for slot, span in zip(table, prompts, strict=True):
            slot[column - span.prompt :] = torch.arange(span.start, span.start + span.prompt)
        cells = table.to(device)

        def enter(slots: Tensor, prefill: Tensor) -> None:
            padded = F.pad(prefill, (0, 0, 0, 1))  # a token of zeros, behind all others
            slots[:, :, :column] = padded[:, cells].transpose(0, 1)

        return enter

    def _allocated(self, column: int, room: int) -> int:
        # Up to a multiple of STEP, or `attended` could exceed the cache.
        return room + -(column + room) % STEP

    def update_slots(self, keep: Sequence[int], *entering: Any) -> None:
        """See `Decoding.update_slots`."""
        super().update_slots(keep, *entering)
        device = self.cache[min(self.cache)][0].device
        self._place = torch.tensor([self.column], device=device)
        self._firsts = self.starts.to(device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs) -> Tensor:
        """Attention of one token per slot, [slots, heads, 1, size] -> [slots, heads, 1, size of v]."""
        keys, values = self.cache[layer]
        # By a tensor on the device: a number of the host would be another operator for every token.
        keys.index_copy_(2, self._place, k)
        values.index_copy_(2, self._place, v)
        slots, heads, _, size = q.shape
        # The query heads that share a key head become its queries: one product per key head, and no
        # copy of the keys.
        q = q.view(slots, k.shape[1], heads // k.shape[1], size)
        keys, values = (x[:, :, : self.attended] for x in (keys, values))
        out = attention(q, keys, values, self._mask_of(args, q), args)
        return out.reshape(slots, heads, 1, -1)  # values may differ in size from queries

    def _mask_of(self, args: AttentionArgs, q: Tensor) -> Tensor:
        """[slots, 1, 1, columns]: true if a slot sees a column, or what is added to its score if
        nothing caps that.
        """
        key = args.window if args.softcap is None else (args.window, "capped")
        if key not in self._masks:
            if len(self._columns) != self.attended:
                self._columns = torch.arange(self.attended, device=q.device)
            # [slots, columns]: neither the empty space on the left nor columns that are not written
            # yet.
            sees = (self._columns >= self._firsts[:, None]) & (self._columns <= self._place)
            if args.window is not None:
                sees &= self._columns > self._place - args.window
            mask = sees[:, None, None]
            if args.softcap is None:  # converted here once, and not in every layer
                mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(
                    ~mask, float("-inf")
                )
            self._masks[key] = mask
        return self._masks[key]

    def advance(self) -> None:
        """Move to the next column; all layers have written this one."""
        super().advance()
        self._place += 1
