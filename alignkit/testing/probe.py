"""The gradient of a global batch on a tiny model, and variants of a batch that must not change it."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from alignkit.algorithm import ADVANTAGES
from alignkit.batch import Batch, Outputs, filled
from alignkit.loss import Per
from alignkit.models.packing import Examples
from alignkit.models.shared_model import SharedModel
from alignkit.plugins import plugins
from alignkit.settings import LoraSpec, ModelSpec
from alignkit.tokens.encoder import Encoded
from alignkit.training.learner import Learner
from alignkit.training.mismatch import times

ONE_BATCH = 1 << 20  # a token budget that no batch here exceeds
GARBAGE = 20.0  # entries outside the mask are drawn from -20 to 20: exp() of their differences is still finite


class TinyModel(SharedModel):
    """The model `tiny`, with a token budget that can be set."""

    budget = ONE_BATCH

    @property
    def token_budget(self) -> int:
        return self.budget


@functools.cache
def tiny_model() -> TinyModel:
    """The model that all checks of a process share."""
    with tempfile.TemporaryDirectory(prefix="alignkit-testing-") as folder:
        spec = ModelSpec(base="tiny", dtype="float32", device="cpu", lora=LoraSpec(r=4, lora_alpha=8))
        return TinyModel(spec, str(plugins().registry.get("model", "tiny").implementation(Path(folder))))


def add_noise(model: SharedModel, role: str, size: float, seed: int) -> None:
    """Add noise to a role's weights: a fresh adapter changes nothing, and half of its gradient is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters_of(role).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)


@dataclass(frozen=True)
class Gradients:
    """The results of a global batch: every logged number, and the gradient of each role as one vector."""

    metrics: dict[str, float]
    gradients: dict[str, Tensor]


class Probe(Learner):
    """A learner that takes no step. With `garbage`, the outputs of its roles are garbage outside the mask."""

    garbage = False

    def gradient(self, examples: Examples) -> Gradients:
        """The metrics and gradients of a global batch."""
        metrics = self._gradients(examples)
        gradients = {}
        for role, what in ((self.role, "the gradient"), (self.value_role, "the value gradient")):
            parameters = [p for key, p in self.parameters.items() if role is not None and key.startswith(f"{role}:")]
            if parameters:
                grads = [p.grad if p.grad is not None else 0 * p.detach() for p in parameters]
                gradients[what] = torch.cat([grad.flatten() for grad in grads])
        return Gradients(metrics, gradients)

    def terms(self, examples: Examples) -> list[tuple[Per, bool]]:
        """The unit that each term of the loss is averaged over, and whether the term has weights."""
        with torch.no_grad():
            terms, weights = self.checked.loss(examples.batch(self.model.device), self._forward(examples))
        return [(term.per, name in weights) for name, term in terms.items()]

    def _forward(self, examples: Examples) -> Outputs:
        out = super()._forward(examples)
        mask = examples.batch(self.model.device).mask
        for name, values in filled(out).items() if self.garbage else ():
            if name != "scores":
                setattr(out, name, _with_garbage(values, mask))
        return out


# --- variants of a batch


class GarbageExamples(Examples):
    """Examples whose batches hold garbage outside the mask."""

    @classmethod
    def of(cls, examples: Examples) -> GarbageExamples:
        return cls(**{field.name: getattr(examples, field.name) for field in fields(Examples)})

    def take(self, indices: Sequence[int]) -> Examples:
        return GarbageExamples.of(super().take(indices))

    def batch(self, device: torch.device | str = "cpu") -> Batch:
        batch = super().batch(device)
        for name, values in filled(batch).items():
            if name in ("old_logprobs", "reference_logprobs", "old_values"):
                setattr(batch, name, _with_garbage(values, batch.mask))
        batch.signals = {n: _with_garbage(x, batch.mask) if x.dim() == 2 else x for n, x in batch.signals.items()}
        return batch


def _with_garbage(values: Tensor, mask: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    noise = GARBAGE * (2 * torch.rand(values.shape, generator=generator) - 1)
    return torch.where(mask, values, noise.to(values))


def shuffled(examples: Examples) -> Examples:
    """Groups in another order, and their responses reversed."""
    order = range(len(examples.groups))
    shuffled = [*order[1::2], *order[::2]][::-1]
    return _regrouped(examples, [(i, range(len(examples.groups[i].rows))[::-1]) for i in shuffled])


def with_weights(examples: Examples, weights: Tensor) -> Examples:
    """The same with weighted advantages. weights: [R, T] or [R]."""
    weighted = examples.take(range(len(examples.groups)))
    weighted.add_signals({ADVANTAGES: times(examples.batch().signals[ADVANTAGES], weights)})
    return weighted


def one_group_per_response(examples: Examples) -> Examples:
    """Every response in a group of its own."""
    return _regrouped(
        examples, [(i, [row]) for i, group in enumerate(examples.groups) for row in range(len(group.rows))]
    )


def one_group_per_pair(examples: Examples) -> Examples:
    """Every pair in a group of its own."""
    pairs = [(i, pair) for i, group in enumerate(examples.groups) for pair in group.pairs]
    return _regrouped(examples, list(dict.fromkeys((i, tuple(sorted((p.better, p.worse)))) for i, p in pairs)))


def _regrouped(examples: Examples, plan: Sequence[tuple[int, Sequence[int]]]) -> Examples:
    """New groups of old groups' responses, [(group, its rows)], with all pairs between these rows."""
    groups, rows = [], []
    for index, chosen in plan:
        encoded = examples.groups[index]
        position = {row: number for number, row in enumerate(chosen)}
        inside = [pair for pair in encoded.pairs if pair.better in position and pair.worse in position]
        pairs = tuple(replace(pair, better=position[pair.better], worse=position[pair.worse]) for pair in inside)
        responses = tuple(encoded.group.responses[row] for row in chosen)
        group = replace(encoded.group, responses=responses, pairs=pairs or None)
        groups.append(Encoded(group, encoded.prompt, tuple(encoded.rows[row] for row in chosen), pairs))
        rows += [examples.offsets[index] + row for row in chosen]
    return Examples(
        groups,
        {name: [column[row] for row in rows] for name, column in examples.token_columns.items()},
        {name: column[rows] for name, column in examples.columns.items()},
        examples.signal_names,
    )
