"""Encoded groups laid side by side in one row of tokens, and cut into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alignkit.kernels.attention import GroupSpan, TreeLayout
from alignkit.models.encoding import Encoded


@dataclass(frozen=True)
class PackedBatch:
    """Encoded groups in one row of tokens.

    tokens: [N]. before: for every counted response token the place of its predecessor, [n]. place: (response, token)
    of each, [n, 2]. targets: the tokens themselves, [n]. last: place of every response's last token, [R].
    """

    layout: TreeLayout
    tokens: Tensor
    before: Tensor
    place: Tensor
    targets: Tensor
    last: Tensor


def pack(groups: Sequence[Encoded]) -> PackedBatch:
    """Lay groups side by side; each prompt stands once before its responses."""
    tokens: list[int] = []
    segments: list[GroupSpan] = []
    counts: list[bool] = []
    firsts: list[int] = []  # of each response: where it begins
    prompt_ends: list[int] = []
    for group in groups:
        segments.append(GroupSpan(len(tokens), len(group.prompt), tuple(len(row.tokens) for row in group.rows)))
        tokens += group.prompt
        end = len(tokens) - 1
        for row in group.rows:
            firsts.append(len(tokens))
            prompt_ends.append(end)
            tokens += row.tokens
            counts += row.mask
    ids = np.array(tokens, dtype=np.int64)
    first = np.array(firsts, dtype=np.int64)
    lengths = np.array([n for segment in segments for n in segment.responses], dtype=np.int64)
    counted = np.array(counts, dtype=bool)
    response = np.repeat(np.arange(len(lengths)), lengths)[counted]
    token = (np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths))[counted]
    where = first[response] + token
    before = np.where(token > 0, where - 1, np.array(prompt_ends, dtype=np.int64)[response])
    return PackedBatch(
        layout=TreeLayout(segments),
        tokens=torch.from_numpy(ids),
        before=torch.from_numpy(before),
        place=torch.from_numpy(np.stack([response, token], axis=1)),
        targets=torch.from_numpy(ids[where]),
        last=torch.from_numpy(first + lengths - 1),
    )


def spread(values: Tensor, row: PackedBatch, shape: tuple[int, int]) -> Tensor:
    """Values of counted tokens [n] as [R, T], zero elsewhere; differentiable."""
    place = row.place.to(values.device)
    return values.new_zeros(shape).index_put((place[:, 0], place[:, 1]), values)


def units(bundles: Sequence[str | None]) -> list[list[int]]:
    """Indices of groups in order, those of one bundle together: what no batch is cut inside of."""
    found: list[list[int]] = []
    keys: dict[str, int] = {}
    for index, bundle in enumerate(bundles):
        if bundle is not None and bundle in keys:
            found[keys[bundle]].append(index)
            continue
        if bundle is not None:
            keys[bundle] = len(found)
        found.append([index])
    return found


def micro_batches(groups: Sequence[Encoded], budget: int) -> Iterator[list[int]]:
    """Indices of groups in order, cut where the tokens would exceed the budget; bundles stay together."""
    current: list[int] = []
    used = 0
    for indices in units([encoded.group.bundle for encoded in groups]):
        length = sum(groups[index].length for index in indices)
        if current and used + length > budget:
            yield current
            current, used = [], 0
        current += indices
        used += length
    if current:
        yield current
