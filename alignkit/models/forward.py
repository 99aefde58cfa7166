"""Forward passes over packed groups: log-probabilities, values and scores of every response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from alignkit.models.budget import within_memory
from alignkit.models.encoding import Encoded
from alignkit.models.packing import PackedBatch, micro_batches, pack, spread
from alignkit.models.shared_model import SharedModel

if TYPE_CHECKING:
    pass


def measure(
    policy: SharedModel, role: str, groups: Sequence[Encoded], what: str, *, temperature: float = 1.0
) -> list[Tensor]:
    """`logprobs` (nats) or `values` of a role for every response, fp32 [tokens] each, zero where a token counts not;
    or `scores`, [] each, from the last token.
    """
    return within_memory(policy, lambda: _measure(policy, role, groups, {role: what}, temperature))[role]


def measure_with_values(
    policy: SharedModel, role: str, value_role: str, groups: Sequence[Encoded], *, temperature: float = 1.0
) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probabilities of a role and values of a value role; one pass where it is a head on the role's trunk."""
    if policy.roles[value_role].trunk != role:
        logprobs = measure(policy, role, groups, "logprobs", temperature=temperature)
        return logprobs, measure(policy, value_role, groups, "values")
    wanted = {role: "logprobs", value_role: "values"}
    found = within_memory(policy, lambda: _measure(policy, role, groups, wanted, temperature))
    return found[role], found[value_role]


@torch.no_grad()
def _measure(
    policy: SharedModel, role: str, groups: Sequence[Encoded], wanted: Mapping[str, str], temperature: float
) -> dict[str, list[Tensor]]:
    """wanted: what to read off the role's hidden states, by the name of the role that reads it."""
    found: dict[str, list[list[Tensor]]] = {reader: [[] for _ in groups] for reader in wanted}
    for indices in micro_batches(groups, 4 * policy.token_budget):  # not in order: members of a bundle stand together
        policy.should_stop()
        part = [groups[i] for i in indices]
        row = pack(part)
        lengths = [len(r.tokens) for encoded in part for r in encoded.rows]
        if not lengths:
            continue
        hidden = policy.hidden(role, row.layout, row.tokens)
        for reader, what in wanted.items():
            if what == "scores":
                values = iter(policy.scalars(reader, hidden[row.last]).cpu())
            else:
                values = iter(_split(_measured(policy, reader, hidden, row, what, temperature), row, lengths))
            for index in indices:
                found[reader][index] = [next(values) for _ in groups[index].rows]
    return {reader: [row for rows in per_group for row in rows] for reader, per_group in found.items()}


def _measured(
    policy: SharedModel, role: str, hidden: Tensor, row: PackedBatch, what: str, temperature: float
) -> Tensor:
    if what == "values":
        return policy.scalars(role, hidden[row.before])
    return policy.logprobs(role, hidden[row.before], row.targets, temperature=temperature)[0]


def _split(values: Tensor, row: PackedBatch, lengths: Sequence[int]) -> list[Tensor]:
    table = spread(values, row, (len(lengths), max(lengths))).cpu()
    return [table[r, :n].clone() for r, n in enumerate(lengths)]
