"""Batches, contexts and losses by hand: what tests of algorithms have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alignkit import Algorithm, Batch, Group, Message, Outputs, Pairs, Response, SelectContext
from alignkit.models.packing import Examples
from alignkit.training.collectives import ONE_PROCESS
from alignkit.training.learner import Averages, Learner, MicroBatch, weighted_sum
from tests.rows import read_json, user

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str, key: str = "") -> list[Any]:
    """The cases of a file of known answers whose inputs have this key."""
    cases = read_json(GOLDEN / f"{name}.json")["cases"]
    return [pytest.param(case, id=case["id"]) for case in cases if not key or key in case["inputs"]]


def new(cls: type[Algorithm], **options: Any) -> Any:
    return cls(cls.Options(**options))


def double(x: Any) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    every = torch.log_softmax(logits / temperature, -1)
    return every.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def close(found: Any, wanted: Any, rtol: float = 1e-8, atol: float = 1e-9) -> None:
    torch.testing.assert_close(double(found).detach(), double(wanted), rtol=rtol, atol=atol)


def gradient(loss: Tensor, at: Tensor | None) -> Tensor:
    assert at is not None
    return torch.autograd.grad(loss, at, retain_graph=True)[0]


def alike(ours: Tensor, theirs: Tensor, at: Tensor, rtol: float = 1e-6, atol: float = 1e-7) -> None:
    """The same loss with the same gradient, which is not 0."""
    close(ours, theirs.detach(), rtol, atol)
    found = gradient(ours, at)
    close(found, gradient(theirs, at), rtol, atol)
    assert found.any()


def pairs_of(rows: Sequence[tuple[int, int, float]], owner: Tensor, **more: Any) -> Pairs:
    """Pairs (better, worse, p) of responses."""
    better, worse, p = (double([row[column] for row in rows]) for column in range(3))
    group = owner[better.long()]
    return Pairs(better.long(), worse.long(), p, **{"margin": 0 * p, "group_index": group, **more})


def batch(
    mask: Any,
    pairs: Sequence[tuple[int, int, float]] | Pairs = (),
    groups: Sequence[Group] | None = None,
    group: Any | None = None,
    **fields: Any,
) -> Batch:
    """Responses of which only these arrays matter, each in a group of its own or in that of
    `group`.
    """
    mask = torch.as_tensor(mask).bool()
    owner = torch.arange(len(mask)) if group is None else torch.as_tensor(group)
    if groups is None:
        groups = [Group(())] * int(owner.max() + 1)
    table = pairs if isinstance(pairs, Pairs) else pairs_of(pairs, owner)
    truncated = torch.zeros(len(mask), dtype=torch.bool)
    return Batch(groups, mask.long(), mask, owner, table, truncated, **fields)


def averaged(algorithm: Algorithm, parts: Sequence[tuple[Batch, Outputs]]) -> Tensor:
    """The loss of a global batch in these parts, as the training loop adds it up."""
    learner: Any = SimpleNamespace(collectives=ONE_PROCESS)
    cuts = [micro_batch(part, algorithm) for part, _ in parts]
    totals = Learner._denominators(learner, cuts)
    total = torch.zeros((), dtype=torch.float64)
    for cut, (part, out) in zip(cuts, parts, strict=True):
        for name, term in algorithm.loss(part, out).items():
            unit = name if name in cut.weights else term.per
            share = weighted_sum(term.values, cut.weights[unit]) / totals[unit]
            total = total + term.coefficient * share
    return total


def micro_batch(given: Batch, algorithm: Algorithm | None = None) -> MicroBatch:
    return MicroBatch(algorithm or new(Algorithm), Examples([]), given, [])


def loss_of(algorithm: Algorithm, given: Batch, **outputs: Any) -> Tensor:
    return averaged(algorithm, [(given, Outputs(**outputs))])


def reported(algorithm: Algorithm, given: Batch, out: Outputs) -> dict[str, float]:
    averages = Averages()
    with torch.no_grad():
        averages.add(algorithm.report_metrics(given, out), micro_batch(given, algorithm))
    return averages.means()


class Looking(SelectContext):
    """What `select` sees, and what it logged and said."""

    def __init__(
        self, earlier: Sequence[list[Group]] = (), seed: int = 0, validation: bool = False
    ):
        self.logged: dict[str, Any] = {}
        self.said: list[str] = []
        rng = np.random.default_rng(seed)
        log, say = self.logged.update, self.said.append
        super().__init__(1, seed, lambda: list(earlier), log, rng, validation, say)


def asked(question: str) -> tuple[Message, ...]:
    return (user(question),)


def scored(rewards: Sequence[Sequence[float | None]], name: str = "") -> list[Group]:
    """A group for each row; a response's text says where it stands: PROMPT.SAMPLE."""
    groups = []
    for p, row in enumerate(rewards):
        scores = [{} if reward is None else {"reward": float(reward)} for reward in row]
        responses = [Response(text=f"{name}{p}.{k}", scores=s) for k, s in enumerate(scores)]
        groups.append(Group(asked(f"{name}{p}"), tuple(responses), id=f"{name}{p}"))
    return groups


def random_batch(seed: int) -> tuple[Batch, Tensor]:
    """Six responses of unequal length, and log-probabilities that the policy has moved to."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.arange(7) < torch.tensor([7, 1, 4, 3, 6, 2])[:, None]

    def noise() -> Tensor:
        return torch.randn(6, 7, generator=draw, dtype=torch.float64)

    old = -noise().abs()
    given = batch(mask, old_logprobs=old, reference_logprobs=old + 0.3 * noise())
    given.signals = {"advantages": torch.randn(6, generator=draw, dtype=torch.float64)}
    return given, (old + 0.3 * noise()).requires_grad_()
