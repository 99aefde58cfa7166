"""Encoded groups with the numbers measured for their responses, and the batches that algorithms see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alignkit.batch import Batch, Outputs, Pairs, filled
from alignkit.tokens.encoder import Encoded, ResponseTokens

BATCH_COLUMNS = ("old_logprobs", "reference_logprobs", "old_values", "rewards", "raw_rewards")


@dataclass
class Examples:
    """Encoded groups with columns of measured numbers, one entry per response in the order of the groups.

    token_columns: fp32 tensors [tokens]. columns: tensors [responses]. signal_names: the columns that hold an
    algorithm's signals.
    """

    groups: list[Encoded]
    token_columns: dict[str, list[Tensor]] = field(default_factory=dict)
    columns: dict[str, Tensor] = field(default_factory=dict)
    signal_names: tuple[str, ...] = ()

    @cached_property
    def rows(self) -> list[ResponseTokens]:
        """The responses of all groups."""
        return [row for group in self.groups for row in group.rows]

    @cached_property
    def offsets(self) -> list[int]:
        """Index of each group's first response, and the number of responses."""
        return [0, *np.cumsum([len(group.rows) for group in self.groups]).tolist()]

    def rows_of(self, indices: Sequence[int]) -> list[int]:
        """Indices of these groups' responses."""
        return [row for i in indices for row in range(self.offsets[i], self.offsets[i + 1])]

    def take(self, indices: Sequence[int]) -> Examples:
        """Select groups, with their columns."""
        rows = self.rows_of(indices)
        return Examples(
            [self.groups[i] for i in indices],
            {name: [column[r] for r in rows] for name, column in self.token_columns.items()},
            {name: column[rows] for name, column in self.columns.items()},
            self.signal_names,
        )

    def add_signals(self, signals: Mapping[str, Tensor]) -> None:
        """Add the tensors that an algorithm's `signal` returned as columns, each [R, T] or [R]."""
        for name, tensor in signals.items():
            values = tensor.detach()
            if tensor.dim() == 2:
                self.token_columns[name] = [values[r, : len(row.tokens)] for r, row in enumerate(self.rows)]
            else:
                self.columns[name] = values
        self.signal_names = (*self.signal_names, *signals)

    def batch(self, device: torch.device | str = "cpu") -> Batch:
        """Pad everything to the longest response: tables [R, T] of R responses and T tokens."""
        # Copies: what an algorithm changes in a batch must not reach the next batch.
        arrays = {name: column.to(torch.float32, copy=True) for name, column in self.columns.items()}
        arrays |= {name: self._padded(column, torch.float32) for name, column in self.token_columns.items()}
        arrays = {name: array.to(device) for name, array in arrays.items()}
        weights = self._padded((row.mask for row in self.rows), torch.float32)
        mask = weights > 0
        weighted = not torch.equal(weights, mask.float())  # compared here: a GPU would have to be waited for
        return Batch(
            groups=[encoded.group for encoded in self.groups],
            tokens=self._padded((row.tokens for row in self.rows), torch.int64).to(device),
            mask=mask.to(device),
            group_index=_integers([g for g, group in enumerate(self.groups) for _ in group.rows], device),
            pairs=self._pairs(device),
            truncated=torch.tensor([row.truncated for row in self.rows], dtype=torch.bool, device=device),
            signals={name: arrays[name] for name in self.signal_names},
            turn_weights=weights.to(device) if weighted else None,
            **{name: arrays[name] for name in BATCH_COLUMNS if name in arrays},
        )

    def _padded(self, column: Iterable[Any], dtype: torch.dtype) -> Tensor:
        """One sequence per response as [R, T], zero (or false) after its end."""
        longest = max((len(row.tokens) for row in self.rows), default=0)
        table = torch.zeros(len(self.rows), longest, dtype=dtype)
        for r, values in enumerate(column):
            table[r, : len(values)] = torch.as_tensor(values, dtype=dtype)
        return table

    def _pairs(self, device: torch.device | str) -> Pairs:
        pairs = [(pair, g) for g, group in enumerate(self.groups) for pair in group.pairs]
        # A margin may be a level's name instead of a number.
        margins = [float(pair.margin) if isinstance(pair.margin, int | float) else 0.0 for pair, _ in pairs]
        return Pairs(
            better=_integers([self.offsets[g] + pair.better for pair, g in pairs], device),
            worse=_integers([self.offsets[g] + pair.worse for pair, g in pairs], device),
            p=torch.tensor([pair.p for pair, _ in pairs], dtype=torch.float32, device=device),
            margin=torch.tensor(margins, dtype=torch.float32, device=device),
            group_index=_integers([g for _, g in pairs], device),
            levels=tuple(pair.margin if isinstance(pair.margin, str) else None for pair, _ in pairs),
        )


def _integers(values: Sequence[int], device: torch.device | str) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)


def join_outputs(outs: Sequence[Outputs], rows: Sequence[Sequence[int]]) -> Outputs:
    """The outputs of micro-batches as one, padded to the longest response of all.

    rows: the place of each micro-batch's responses in the result; together they are all places.
    """
    longest = max((table.shape[1] for out in outs for table in filled(out).values() if table.dim() > 1), default=0)
    order = [row for places in rows for row in places]

    def joined(name: str) -> Tensor:
        tables: list[Tensor] = [getattr(out, name) for out in outs]
        padded = [x if x.dim() == 1 else nn.functional.pad(x, (0, longest - x.shape[1])) for x in tables]
        together = torch.cat(padded)
        return together if order == sorted(order) else together[torch.tensor(order).argsort().to(together.device)]

    return Outputs(**{name: joined(name) for name in filled(outs[0])})
