"""Sampling on a GPU: attention of one token per row without waiting for the host, and weights with
the adapter in them.

A GPU waits for the host to start each operator. So shapes repeat from token to token, no step needs
a number from the host, and one call serves all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit.kernels import memory
from alignkit.kernels.attention import attention
from alignkit.kernels.decoding import Change, Decoding
from alignkit.kernels.layout import AttentionArgs
from alignkit.kernels.lora import plain_layers
from alignkit.kernels.matmul import PackedWeight
from alignkit.models.next_token import choose

# Tokens that are written between two looks of the host: the GPU would stand idle meanwhile
LOOK_EVERY = 8
STEP = 128  # columns by which those that rows attend to grow
# Merged weights may take this share of the free memory; keys and values take half
FREE_SHARE = 1 / 4


class PaddedChange(Change):
    """A `Change` in some calls for all rows: a call costs more than the bytes that empty cells
    add.
    """

    def enter(self, rows: Tensor, prefill: Tensor) -> None:
        """Write the prompts' tokens into the rows that enter."""
        padded = F.pad(prefill, (0, 0, 0, 1))  # a token of zeros, behind all others
        rows[:, :, : self.column] = padded[:, self._cells].transpose(0, 1)

    @cached_property
    def _cells(self) -> Tensor:
        """[entering rows, column]: the index of each cell's token in the prefill; empty cells have
        the last one.
        """
        cells = torch.full((len(self.prompts), self.column), -1)
        for row, span in zip(cells, self.prompts, strict=True):
            row[self.column - span.prompt :] = torch.arange(span.start, span.start + span.prompt)
        return cells.to(self.keep.device)


def write_ahead(
    decoder: Any, rows: Sequence[Any], logits: Tensor, read: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Append up to LOOK_EVERY tokens to every active row, as `decoder.write` does, and return the
    last ones, [rows].

    decoder, rows: those of `alignkit.models.generate`. logits: [rows, vocabulary] of the first.
    read: given tokens and their positions, [rows] each, returns the logits of the next ones. The
    caller reads the last token, if any row still needs more.
    """
    device, sampling = logits.device, decoder.request.sampling
    lengths = torch.tensor([decoder.length(row) for row in rows])
    room = torch.tensor([row.room if row.active else 0 for row in rows])
    count = min(LOOK_EVERY, max(1, int(room.max())))
    # [count, rows] each. A row without room stays at its last position.
    positions = (lengths + torch.minimum(torch.arange(count)[:, None], room - 1)).to(device)
    draws = np.zeros((count, len(rows)))
    for column, row in enumerate(rows):
        if row.active:
            own = row.draws[len(row.tokens) :][:count]
            draws[: len(own), column] = own
    uniform = torch.from_numpy(draws).to(device)
    short = (
        torch.tensor([len(row.tokens) for row in rows]) + torch.arange(count)[:, None]
        < sampling.min_new_tokens
    )
    early = short.to(device) if short.any() else [None] * count
    chosen, drawn = torch.zeros(0), []
    for step in range(count):
        if step:
            logits = read(chosen, positions[step - 1])
        chosen, logprobs = choose(logits, uniform[step], sampling, early[step], decoder.ends)
        drawn.append(torch.stack([chosen.double(), logprobs.double()]))  # both exact in fp64
    for ids, values in torch.stack(drawn).tolist():  # the only time that the host waits for the GPU
        decoder.append(rows, list(map(int, ids)), values)
    return chosen


class StaticDecoding(Decoding):
    """`Decoding` in one block of rows, on the device of the cache.

    Rows attend to a number of columns that grows by STEP; the mask hides those that are not filled
    yet. Where the next token goes is a number on the device.
    """

    change = PaddedChange
    write_ahead = staticmethod(write_ahead)

    def __init__(self) -> None:
        super().__init__()
        self._place = torch.zeros(1, dtype=torch.int64)  # `column`, on the device
        self._firsts = self.starts  # [rows], `starts` on the device
        self._columns = torch.zeros(0, dtype=torch.int64)  # [columns], their numbers

    @property
    def attended(self) -> int:
        """Columns that the rows attend to, filled or not."""
        # At least one more than the column, which is an index
        return (self.column // STEP + 1) * STEP

    def _allocated(self, column: int, room: int) -> int:
        # Up to a multiple of STEP, or `attended` could exceed the cache.
        return room + -(column + room) % STEP

    def update_rows(self, keep: Sequence[int], *entering: Any) -> None:
        """See `Decoding.update_rows`."""
        super().update_rows(keep, *entering)
        device = self.cache[min(self.cache)][0].device
        self._place = torch.tensor([self.column], device=device)
        self._firsts = self.starts.to(device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs) -> Tensor:
        """Attention of one token per row, [rows, heads, 1, size] -> [rows, heads, 1, size of v]."""
        keys, values = self.cache[layer]
        # By a tensor on the device: a number of the host would be another operator for every token.
        keys.index_copy_(2, self._place, k)
        values.index_copy_(2, self._place, v)
        rows, heads, _, size = q.shape
        # The query heads that share a key head become its queries: one product per key head, and no
        # copy of the keys.
        q = q.view(rows, k.shape[1], heads // k.shape[1], size)
        keys, values = (x[:, :, : self.attended] for x in (keys, values))
        out = attention(q, keys, values, self._mask_of(args, q), args)
        return out.reshape(rows, heads, 1, -1)  # values may differ in size from queries

    def _mask_of(self, args: AttentionArgs, q: Tensor) -> Tensor:
        """[rows, 1, 1, columns]: true if a row sees a column, or what is added to its score if
        nothing caps that.
        """
        key = args.window if args.softcap is None else (args.window, "capped")
        if key not in self._masks:
            if len(self._columns) != self.attended:
                self._columns = torch.arange(self.attended, device=q.device)
            # [rows, columns]: neither the empty space on the left nor columns that are not written
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


# Copies of the weights with a role's adapter merged in: the adapter's calls are half of all calls
# of a token. Merged in half precision, an adapter is rounded with its weight.


class MergedWeight(PackedWeight):
    """x W^T + b by a weight that contains an adapter, for any number of rows, without a
    gradient.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight, self.bias = weight, bias

    def suits(self, rows: int) -> bool:
        """Any number of rows."""
        return True

    def __call__(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return F.linear(x, self.weight, self.bias)


@torch.no_grad()
def merged_weights(model: Any, adapter: str | None) -> dict[int, PackedWeight]:
    """Merged weights by the `id` of the adapter's upper factor; none without an adapter, or without
    room for copies.

    Quantized layers keep their adapters apart.
    """
    layers = plain_layers(model)
    size = sum(layer.base_layer.weight.nbytes for layer in layers)
    if adapter is None or size > FREE_SHARE * memory.available(
        model.get_output_embeddings().weight.device
    ):
        return {}
    merged: dict[int, PackedWeight] = {}
    for layer in layers:
        base, down, up = (
            layer.base_layer,
            layer.lora_A[adapter].weight,
            layer.lora_B[adapter].weight,
        )
        # The products of bf16 numbers would be rounded twice.
        weight = torch.addmm(
            base.weight.float(), up.float(), down.float(), alpha=layer.scaling[adapter]
        )
        # By `up`, which `adapted` has at hand and which differs between adapters; the frozen weight
        # is shared.
        merged[id(up)] = MergedWeight(weight.to(base.weight.dtype), base.bias)
    return merged
