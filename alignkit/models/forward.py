"""The one forward pass of training, measuring, and the conformance kit: pack, hidden states, heads, unpack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from alignkit.batch import Outputs, filled
from alignkit.kernels.lm_head import Entropy
from alignkit.models.budget import within_memory
from alignkit.models.examples import Examples
from alignkit.models.packing import micro_batches, pack
from alignkit.models.shared_model import SharedModel
from alignkit.tokens.encoder import Encoded


@dataclass(frozen=True)
class Wants:
    """The numbers to compute for every response.

    logprobs: log-probability of each counted token at `temperature`, in nats. entropy: of the same distributions;
    "reported" gives it no gradient. values: the role whose scalar head predicts one before each counted token.
    scores: the scalar head of the role itself, at the last token that it reads.
    """

    logprobs: bool = True
    entropy: Entropy = False
    values: str | None = None
    scores: bool = False
    temperature: float = 1.0


def forward(model: SharedModel, role: str, examples: Examples, wants: Wants) -> Outputs:
    """Run a role over examples in one packed row.

    Returns fp32 tables [responses, tokens], zero where no token counts; scores are [responses]. With gradients enabled
    they reach the role's parameters and those of the value role.
    """
    packed = pack(examples.groups)
    hidden = model.hidden(role, packed.layout, packed.tokens)
    outputs = Outputs()
    if wants.scores:
        outputs.scores = model.scalars(role, hidden[packed.scored(model.roles[role].unread)])
    if wants.logprobs:
        # The shift by one: the state at a token predicts the next, so it is read at `before`.
        logprobs, entropy = model.logprobs(
            role, hidden[packed.before], packed.targets, temperature=wants.temperature, entropy=wants.entropy
        )
        outputs.logprobs = packed.unpack(logprobs)
        if entropy is not None:
            outputs.entropy = packed.unpack(entropy)
    if wants.values is not None:
        # A head on the policy's backbone reads the states that are already here.
        if model.backbone_role(wants.values) != model.backbone_role(role):
            hidden = model.hidden(wants.values, packed.layout, packed.tokens)
        # The value before a token is written, at the state that predicts it.
        outputs.values = packed.unpack(model.scalars(wants.values, hidden[packed.before]))
    return outputs


def measure(
    model: SharedModel,
    role: str,
    groups: Sequence[Encoded],
    what: Literal["logprobs", "values", "scores"],
    *,
    temperature: float = 1.0,
    done: Callable[[int], None] = lambda groups: None,
) -> list[Tensor]:
    """Compute one output of a role for every response, without gradients, as fp32 tensors on the CPU.

    `logprobs` (nats) and `values` are [tokens], zero for tokens that do not count. `scores` are []. done: is given the
    number of groups measured so far.
    """
    wants = Wants(what == "logprobs", values=role if what == "values" else None, scores=what == "scores",
                  temperature=temperature)  # fmt: skip
    return _measure(model, role, groups, wants, done).get(what, [])


def measure_with_values(
    model: SharedModel, role: str, value_role: str, groups: Sequence[Encoded], *, temperature: float = 1.0
) -> tuple[list[Tensor], list[Tensor]]:
    """Compute a role's log-probabilities and a value role's values; see `measure`. A shared backbone runs once."""
    measured = _measure(model, role, groups, Wants(values=value_role, temperature=temperature))
    return measured.get("logprobs", []), measured.get("values", [])


def _measure(
    model: SharedModel,
    role: str,
    groups: Sequence[Encoded],
    wants: Wants,
    done: Callable[[int], None] = lambda groups: None,
) -> dict[str, list[Tensor]]:
    examples = Examples(list(groups))
    return within_memory(model.memory, lambda: _in_micro_batches(model, role, examples, wants, done))


@torch.no_grad()
def _in_micro_batches(
    model: SharedModel, role: str, examples: Examples, wants: Wants, done: Callable[[int], None]
) -> dict[str, list[Tensor]]:
    """Return every output as one tensor per response, in the order of the examples."""
    measured: dict[str, list[Tensor]] = {}
    groups = 0
    # A micro-batch is not a run of consecutive groups: it keeps bundles together.
    for indices in micro_batches(examples.groups, model.inference_budget):
        model.should_stop()
        part = examples.take(indices)
        groups += len(indices)
        if not part.rows:
            continue
        for name, table in filled(forward(model, role, part, wants)).items():
            column = measured.setdefault(name, [torch.empty(0)] * len(examples.rows))
            for position, row, values in zip(examples.rows_of(indices), part.rows, table.cpu(), strict=True):
                # Cloned, because a view would keep the whole padded table in memory.
                column[position] = values[: len(row.tokens)].clone() if values.dim() else values
        done(groups)
    return measured
