"""Packed batches: encoded groups side by side in one row of tokens, and the cuts of a global batch into them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.layout import GroupSpan
from alignkit.tokens.encoder import Encoded


@dataclass(frozen=True)
class PackedBatch:
    """Encoded groups in one row of N tokens, with R responses of up to T tokens, n of which count.

    layout: which tokens attend to which. tokens: [N] the row. targets: [n] the counted tokens. before: [n] index in the
    row of each target's predecessor. cells: [n, 2] response and token index of each target. last: [R] index in the row
    of each response's last token. shape: (R, T). All tensors are int64 on the CPU.
    """

    layout: TreeLayout
    tokens: Tensor
    targets: Tensor
    before: Tensor
    cells: Tensor
    last: Tensor
    shape: tuple[int, int]

    def scored(self, unread: int | None) -> Tensor:
        """[R] index in the row of the token at which each response is scored: its last one but `unread` tokens."""
        if unread is None:
            return self.last
        places = []
        for span in self.layout.spans:
            start = span.start + span.prompt
            for length in span.responses:
                path = [*range(span.start, span.start + span.prompt), *range(start, start + length)]
                # A response that is nothing but skipped tokens is scored in its prompt.
                while len(path) > 1 and int(self.tokens[path[-1]]) == unread:
                    path.pop()
                places.append(path[-1])
                start += length
        return torch.tensor(places, dtype=torch.int64)

    def unpack(self, values: Tensor) -> Tensor:
        """Arrange one value per target [n] as [R, T], zero elsewhere; differentiable."""
        response, token = self.cells.to(values.device).unbind(1)
        return values.new_zeros(self.shape).index_put((response, token), values)


def pack(groups: Sequence[Encoded]) -> PackedBatch:
    """Lay groups side by side; each prompt appears once, before its responses."""
    row: list[int] = []
    spans: list[GroupSpan] = []
    counts: list[float] = []
    starts: list[int] = []  # of each response
    prompt_ends: list[int] = []  # of each response: the last token of its prompt
    for group in groups:
        spans.append(GroupSpan(len(row), len(group.prompt), tuple(len(r.tokens) for r in group.rows)))
        row += group.prompt
        # An empty prompt has no last token, but then no response's first token counts, and nothing reads this index.
        prompt_end = len(row) - 1
        for response in group.rows:
            starts.append(len(row))
            prompt_ends.append(prompt_end)
            row += response.tokens
            counts += response.mask
    tokens = np.array(row, dtype=np.int64)
    start = np.array(starts, dtype=np.int64)
    lengths = np.array([n for span in spans for n in span.responses], dtype=np.int64)
    counted = np.array(counts, dtype=bool)
    # [n] each, of the counted tokens: the response, and the index in it (a running number minus where it starts).
    response_index = np.repeat(np.arange(len(lengths)), lengths)[counted]
    token_index = (np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths))[counted]
    targets = start[response_index] + token_index
    # In the row, a first token may follow another response; what predicts it is the end of its prompt.
    before = np.where(token_index > 0, targets - 1, np.array(prompt_ends, dtype=np.int64)[response_index])
    return PackedBatch(
        layout=TreeLayout(spans),
        tokens=torch.from_numpy(tokens),
        targets=torch.from_numpy(tokens[targets]),
        before=torch.from_numpy(before),
        cells=torch.from_numpy(np.stack([response_index, token_index], axis=1)),
        # A response without tokens is scored at the end of its prompt; what precedes it may be another response.
        last=torch.from_numpy(np.where(lengths > 0, start + lengths - 1, np.array(prompt_ends, dtype=np.int64))),
        shape=(len(lengths), int(lengths.max(initial=0))),
    )


def indivisible(bundles: Sequence[str | None]) -> list[list[int]]:
    """Group indices in units that no batch may split: a bundle's groups together, every other group on its own.

    bundles: each group's bundle, or None. Units are in the order of their first groups.
    """
    units: list[list[int]] = []
    unit_of: dict[str, list[int]] = {}
    for index, bundle in enumerate(bundles):
        if bundle is not None and bundle in unit_of:
            unit_of[bundle].append(index)
            continue
        units.append([index])
        if bundle is not None:
            unit_of[bundle] = units[-1]
    return units


def micro_batches(groups: Sequence[Encoded], budget: int) -> Iterator[list[int]]:
    """Cut groups into batches of at most `budget` tokens, as lists of indices.

    Indivisible units stay together, so a unit over the budget makes a batch of its own.
    """
    batch: list[int] = []
    used = 0
    for unit in indivisible([encoded.group.bundle for encoded in groups]):
        length = sum(groups[index].length for index in unit)
        if batch and used + length > budget:
            yield batch
            batch, used = [], 0
        batch += unit
        used += length
    if batch:
        yield batch
