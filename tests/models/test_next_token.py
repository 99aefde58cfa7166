"""The choice of the next token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from alignkit.contract.settings import Sampling
from alignkit.models import next_token
from alignkit.models.next_token import choose, inverse_cdf
from tests.same import same


@pytest.mark.parametrize("size", [3, 256, 257, 5000])
def test_inverse_cdf_matches_the_whole_vocabularys(size: int) -> None:
    """Up to rounding, the draw is between the sums before and after the chosen token."""
    generator = torch.Generator().manual_seed(size)
    weights = torch.rand(50, size, generator=generator) ** 8
    weights[torch.rand(50, size, generator=generator) < 0.5] = 0
    weights[:, [0, -1]] = 0
    weights[:, size // 2] += 0.01
    weights *= 1e-6
    sums = weights.double().cumsum(dim=-1)
    total = sums[:, -1:]
    uniform = torch.rand(50, generator=generator, dtype=torch.float64)
    for draws in (uniform, torch.zeros(50).double(), torch.full((50,), 1 - 2**-53).double()):
        chosen, wanted = inverse_cdf(weights, draws)[:, None], draws[:, None] * total
        after, own = sums.gather(1, chosen), weights.double().gather(1, chosen)
        assert (own > 0).all()
        assert (after - own <= wanted + 1e-6 * total).all()
        assert (wanted <= after + 1e-6 * total).all()


# Filters, and how many of 12 tokens they keep: null, as many as add up to 0.6
FILTERS = yaml.safe_load("""
- [{}, 12]
- [{top_k: 3}, 3]
- [{top_k: 50}, 12]
- [{top_p: 0.6}, null]
- [{top_p: 0.000001}, 1]
- [{min_new_tokens: 1}, 12]
""")


@pytest.mark.silent_bug(
    "sampling: log-probabilities",
    "Old log-probabilities are those after filters, such as top_k.",
    "They are the policy's.",
    "huggingface/trl#2358",
)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize(("filters", "kept"), FILTERS)
def test_choose_draws_from_the_filtered_policy(
    temperature: float, filters: dict[str, Any], kept: int | None
) -> None:
    """In evenly spaced draws; t0 is the end. Reported log-probabilities are the unfiltered policy's,
    as old log-probabilities must be.
    """
    count = 20_000
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
    full = torch.softmax(logits[0] / temperature, -1)
    order = full.argsort(descending=True)
    kept = kept or int((full[order].cumsum(0) < 0.6).sum()) + 1
    allowed = torch.where(torch.isin(torch.arange(12), order[:kept]), full, 0.0)
    early = torch.ones(count, dtype=torch.bool) if "min_new_tokens" in filters else None
    if early is not None:
        allowed[0] = 0.0
    draws = (torch.arange(count).double() + 0.5) / count
    sampling = Sampling(temperature=temperature, **filters)
    rows = logits.expand(count, -1)
    chosen, logprobs = choose(rows, draws, sampling, early, torch.tensor([0]))
    shares = torch.bincount(chosen, minlength=12) / count
    same(shares, allowed / allowed.sum(), atol=2e-4, rtol=0)
    assert not ((shares > 0) & (allowed == 0)).any()
    same(logprobs, full.log()[chosen])


@pytest.mark.parametrize(
    ("option", "value"),
    [("top_p", 0.0), ("top_k", -1), ("temperature", -1.0), ("temperature", float("nan"))],
)
def test_invalid_options_are_refused(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option}\n  Input should be"):
        Sampling.model_validate({option: value})


def test_apples_gpus_compute_no_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have none, so the draw is made on the CPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    double = Tensor.double

    def on_a_cpu(x: Tensor) -> Tensor:
        assert x.device.type == "cpu"
        return double(x)

    monkeypatch.setattr(Tensor, "double", on_a_cpu)
    with FakeTensorMode():
        weights = torch.empty(3, 700, device="mps")
        chosen = inverse_cdf(weights, torch.empty(3, dtype=torch.float64))
    assert chosen.device.type == "mps" and chosen.shape == (3,)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0), Sampling(top_p=0.9)])
def test_slots_that_are_held_apart_choose_the_same(
    monkeypatch: pytest.MonkeyPatch, sampling: Sampling
) -> None:
    """Each row by itself, with its own draw and its own ban on ends."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(7, 600, generator=generator)
    draws = torch.rand(7, generator=generator, dtype=torch.float64)
    ends, early = torch.arange(300), torch.arange(7) % 2 == 0
    every = []
    for held in (2**23, 1200, 1):
        monkeypatch.setattr(next_token, "HELD", held)
        every.append(choose(logits, draws, sampling, early, ends))
    for chosen, logprobs in every[1:]:
        assert torch.equal(chosen, every[0][0]) and torch.equal(logprobs, every[0][1])
    assert not (every[0][0][early] < 300).any() and (every[0][0][~early] < 300).any()
