"""Decoding for GPUs: shapes that repeat from token to token, and no step that needs a number from the host.

A GPU waits for the host to start each operator, so there is one call for all rows. They attend to a number of columns
that grows by STEP; the mask hides those that are not filled yet. Where the next token goes is a number on the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alignkit.kernels.attention import attention
from alignkit.kernels.decoding import Decoding
from alignkit.kernels.layout import AttentionArgs

STEP = 128  # columns


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
