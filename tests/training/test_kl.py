"""The KL that a stage prints is never negative, and that of its policy whichever weights sampled."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from alignkit import Group, Response
from alignkit.training.online import mean_kl

POLICY, REFERENCE, OLDER = (
    torch.tensor(p).log() for p in ([0.1, 0.2, 0.7], [0.3, 0.4, 0.3], [0.7, 0.2, 0.1])
)


@pytest.mark.silent_bug(
    "metrics: KL",
    "The KL that a stage prints is the mean log ratio, whose noise may make it negative.",
    "It is k3.",
)
@pytest.mark.parametrize(("sampler", "async_level"), [(POLICY, None), (OLDER, 1)])
def test_the_kl_is_k3(sampler: Tensor, async_level: int | None) -> None:
    """Its mean over every token, as often as each is sampled, is the KL; stale samples count by
    how likely they are today.
    """
    found = []
    for token in range(3):
        sampled = (float(sampler[token]),)
        response = Response(tokens=(token,), logprobs=sampled, async_level=async_level)
        policy, reference = POLICY[[token]], REFERENCE[[token]]
        found.append(mean_kl([policy], [reference], [Group((), (response,))]))
    assert min(found) > 0
    wanted = POLICY.exp() @ (POLICY - REFERENCE)
    torch.testing.assert_close(sampler.exp() @ torch.tensor(found), wanted)
