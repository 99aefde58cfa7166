"""Encoded groups with the numbers measured for their responses, and the arrays that algorithms see of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from alignkit.batch import Batch, Outputs, Pairs, filled
from alignkit.models.encoding import Encoded

if TYPE_CHECKING:
    pass


@dataclass
class Examples:
    """Encoded groups with what was measured for their responses: each column has an entry per response, in order.

    Token columns hold [tokens] tensors, response columns numbers.
    """

    groups: list[Encoded]
    token_columns: dict[str, list[Tensor]] = field(default_factory=dict)
    columns: dict[str, list[float]] = field(default_factory=dict)
    signal_names: tuple[str, ...] = ()

    @cached_property
    def offsets(self) -> list[int]:
        """Index of each group's first response."""
        return [0, *np.cumsum([len(group.rows) for group in self.groups]).tolist()]

    def rows_of(self, indices: Sequence[int]) -> list[int]:
        return [row for i in indices for row in range(self.offsets[i], self.offsets[i + 1])]

    def take(self, indices: Sequence[int]) -> Examples:
        """The same of some groups."""
        rows = self.rows_of(indices)
        return Examples(
            [self.groups[i] for i in indices],
            {name: [column[r] for r in rows] for name, column in self.token_columns.items()},
            {name: [column[r] for r in rows] for name, column in self.columns.items()},
            self.signal_names,
        )

    def add_signals(self, signals: Mapping[str, Tensor]) -> None:
        """Keep what `signal` returned: [R, T] or [R] over all responses."""
        for name, tensor in signals.items():
            if tensor.dim() == 2:
                lengths = [len(row.tokens) for group in self.groups for row in group.rows]
                self.token_columns[name] = [tensor[r, :n].detach() for r, n in enumerate(lengths)]
            else:
                self.columns[name] = tensor.detach().tolist()
        self.signal_names = (*self.signal_names, *signals)

    def batch(self, device: torch.device | str = "cpu") -> Batch:
        """The arrays that algorithms see."""
        rows = [row for group in self.groups for row in group.rows]
        count, longest = len(rows), max((len(row.tokens) for row in rows), default=0)
        tokens = torch.zeros(count, longest, dtype=torch.int64)
        mask = torch.zeros(count, longest, dtype=torch.bool)
        filled = torch.arange(longest) < torch.tensor([[len(row.tokens)] for row in rows], dtype=torch.int64)
        tokens[filled] = torch.tensor([token for row in rows for token in row.tokens], dtype=torch.int64)
        mask[filled] = torch.tensor([counts for row in rows for counts in row.mask], dtype=torch.bool)
        owner = torch.tensor([g for g, group in enumerate(self.groups) for _ in group.rows], dtype=torch.int64)
        names = {"old_logprobs", "reference_logprobs", "old_values", "rewards", "raw_rewards"}
        arrays = {name: self._array(name, count, longest).to(device) for name in self.columns | self.token_columns}
        return Batch(
            groups=[group.group for group in self.groups],
            tokens=tokens.to(device),
            mask=mask.to(device),
            group_index=owner.to(device),
            pairs=self._pairs(device),
            truncated=torch.tensor([row.truncated for row in rows], dtype=torch.bool, device=device),
            signals={name: arrays[name] for name in self.signal_names},
            **{name: arrays[name] for name in names & arrays.keys()},
        )

    def _array(self, name: str, count: int, longest: int) -> Tensor:
        if name in self.columns:
            return torch.tensor(self.columns[name], dtype=torch.float32)
        out = torch.zeros(count, longest)
        for r, values in enumerate(self.token_columns[name]):
            out[r, : len(values)] = values
        return out

    def _pairs(self, device: torch.device | str) -> Pairs:
        found = [(pair, g) for g, group in enumerate(self.groups) for pair in group.pairs]
        better = [self.offsets[g] + pair.better for pair, g in found]
        worse = [self.offsets[g] + pair.worse for pair, g in found]
        margins = [float(pair.margin) if isinstance(pair.margin, int | float) else 0.0 for pair, _ in found]
        return Pairs(
            better=torch.tensor(better, dtype=torch.int64, device=device),
            worse=torch.tensor(worse, dtype=torch.int64, device=device),
            p=torch.tensor([pair.p for pair, _ in found], dtype=torch.float32, device=device),
            margin=torch.tensor(margins, dtype=torch.float32, device=device),
            group_index=torch.tensor([g for _, g in found], dtype=torch.int64, device=device),
            levels=tuple(pair.margin if isinstance(pair.margin, str) else None for pair, _ in found),
        )


def join(parts: Sequence[Examples]) -> Examples:
    """Several examples as one."""
    first = parts[0]
    return Examples(
        [group for part in parts for group in part.groups],
        {name: [x for part in parts for x in part.token_columns[name]] for name in first.token_columns},
        {name: [x for part in parts for x in part.columns[name]] for name in first.columns},
        first.signal_names,
    )


def join_outputs(outs: Sequence[Outputs], batches: Sequence[Batch]) -> Outputs:
    """Outputs of several micro-batches as one, padded to the longest response."""
    longest = max(batch.tokens.shape[1] for batch in batches)

    def cat(name: str) -> Tensor:
        found = [getattr(out, name) for out in outs]
        if found[0].dim() == 1:
            return torch.cat(found)
        return torch.cat([nn.functional.pad(x, (0, longest - x.shape[1])) for x in found])

    return Outputs(**{name: cat(name) for name in filled(outs[0])})
