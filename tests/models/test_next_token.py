"""The choice of the next token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from alignkit.models.next_token import choose, inverse_cdf
from alignkit.sampling import Sampling


def frequencies(logits: Tensor, sampling: Sampling, draws: int = 20_000) -> tuple[Tensor, Tensor]:
    """Frequencies of the tokens over evenly spaced draws, and their log-probabilities (0: never
    chosen).
    """
    u = (torch.arange(draws).double() + 0.5) / draws
    early = torch.full((draws,), True) if sampling.min_new_tokens else None
    chosen, logprobs = choose(logits.expand(draws, -1), u, sampling, early, torch.tensor([0]))
    found = torch.zeros(logits.shape[-1]).index_put((chosen,), logprobs)
    return torch.bincount(chosen, minlength=logits.shape[-1]) / draws, found


@pytest.mark.parametrize("size", [3, 256, 257, 5000])
def test_inverse_cdf_matches_the_whole_vocabularys(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    weights = torch.rand(50, size, generator=generator) ** 8
    weights[torch.rand(50, size, generator=generator) < 0.5] = 0
    weights[:, [0, -1]] = 0
    weights[:, size // 2] += 0.01
    for scale in (1.0, 1e-6):
        for draws in (
            torch.rand(50, generator=generator, dtype=torch.float64),
            torch.zeros(50).double(),
        ):
            cumulative = (scale * weights.double()).cumsum(dim=-1)
            wanted = draws[:, None] * cumulative[:, -1:]
            found = inverse_cdf(scale * weights, draws)[:, None]
            # Up to rounding, the draw is between the sums before and after the chosen token.
            slack = 1e-6 * cumulative[:, -1:]
            before = cumulative.gather(1, found) - scale * weights.double().gather(1, found)
            assert bool(
                (before <= wanted + slack).all()
                and (wanted <= cumulative.gather(1, found) + slack).all()
            )
            assert bool((weights.gather(1, found) > 0).all())
    nearly_one = torch.full((50,), 1 - 2**-53, dtype=torch.float64)
    assert bool((weights.gather(1, inverse_cdf(weights, nearly_one)[:, None]) > 0).all())


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_choose_draws_from_the_filtered_policy(temperature: float) -> None:
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
    full = torch.softmax(logits[0] / temperature, -1)
    order = full.argsort(descending=True)

    def kept(count: int) -> Tensor:
        return torch.where(torch.isin(torch.arange(12), order[:count]), full, 0.0)

    nucleus = int((full[order].cumsum(0) < 0.6).sum()) + 1
    without_end = full.clone()
    without_end[0] = 0.0
    for sampling, allowed in (
        (Sampling(temperature=temperature), full),
        (Sampling(temperature=temperature, top_k=3), kept(3)),
        (Sampling(temperature=temperature, top_k=50), full),
        (Sampling(temperature=temperature, top_p=0.6), kept(nucleus)),
        (Sampling(temperature=temperature, top_p=1e-6), kept(1)),
        (Sampling(temperature=temperature, min_new_tokens=1), without_end),
    ):
        shares, logprobs = frequencies(logits, sampling)
        torch.testing.assert_close(shares, allowed / allowed.sum(), atol=2e-4, rtol=0)
        assert not bool(((shares > 0) & (allowed == 0)).any())
        # Reported log-probabilities are the unfiltered policy's, as old log-probabilities must be.
        torch.testing.assert_close(logprobs, torch.where(shares > 0, full.log(), 0.0))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"top_p": 0.0}, "top_p\n  Input should be greater than 0"),
        ({"top_k": -1}, "top_k\n  Input should be greater than or equal to 0"),
        ({"temperature": -1.0}, "temperature\n  Input should be greater than or equal to 0"),
        ({"temperature": float("nan")}, "temperature\n  Input should be a finite number"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Sampling(**options)


def test_apples_gpus_compute_no_fp64() -> None:
    """They have none, so the draw is made on the CPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class NoDoubles(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            assert not (
                isinstance(out, Tensor) and out.device.type == "mps" and out.dtype == torch.float64
            ), func
            return out

    with FakeTensorMode(), NoDoubles():
        weights = torch.empty(3, 700, device="mps")
        chosen = inverse_cdf(weights, torch.empty(3, dtype=torch.float64))
    assert chosen.device.type == "mps" and chosen.shape == (3,)
