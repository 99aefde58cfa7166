"""The KL of a stage's samples is never negative."""

from __future__ import annotations

import pytest
import torch

from alignkit import Group, Response
from alignkit.training.online import mean_kl


def drawn(count: int, seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor], list[Group]]:
    """Log-probabilities of ten tokens each, by a policy and a reference, of the policy's
    samples.
    """
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    random = torch.Generator().manual_seed(seed)
    tokens = torch.multinomial(policy.expand(count, 3), 10, replacement=True, generator=random)
    groups = [Group((), (Response("x", tokens=tuple(row)),)) for row in tokens.tolist()]
    return list(policy.log()[tokens]), list(reference.log()[tokens]), groups


@pytest.mark.silent_bug(
    "metrics: KL",
    "The KL that a stage prints is the mean log ratio, whose noise may make it negative.",
    "It is k3.",
)
def test_the_kl_is_k3() -> None:
    true = 10 * (0.5 - 0.2) * float(torch.tensor(2.5).log())
    assert mean_kl(*drawn(4000, 0)) == pytest.approx(true, rel=0.03)
    assert all(mean_kl(*drawn(1, seed)) > 0 for seed in range(50))
