"""Entropies, estimates of the KL divergence between two policies from sampled tokens, and its
adaptive coefficient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from alignkit.functional._tensors import check_shapes, exponent, widen, zero_masked


def log_ratio(logprobs: Tensor, other_logprobs: Tensor, mask: Tensor | None) -> Tensor:
    """log pi - log pi_other, in float32 or wider, 0 on masked entries; not clamped."""
    check_shapes(logprobs=logprobs, other_logprobs=other_logprobs)
    return zero_masked(widen(logprobs) - widen(other_logprobs), mask)


def kl_k1(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor | None = None) -> Tensor:
    """Estimate the KL of each token as log pi - log pi_ref, in nats.

    Unbiased for KL(pi || pi_ref) on samples of pi; may be negative.

    Schulman 2020, "Approximating KL divergence". Use it as a penalty inside a reward; as a loss,
    its expected gradient is 0.

    Args:
        logprobs: [B, T], in nats, of the policy.
        reference_logprobs: [B, T], in nats, of the reference.
        mask: [B, T]: true for tokens that count; None: all.
    """
    return log_ratio(logprobs, reference_logprobs, mask)


def kl_k2(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor | None = None) -> Tensor:
    """(log pi - log pi_ref)^2 / 2 per token: biased as an estimate; as a loss, it has the gradient
    of KL(pi || pi_ref).

    Schulman 2020.
    """
    return log_ratio(logprobs, reference_logprobs, mask) ** 2 / 2


def kl_k3(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor | None = None) -> Tensor:
    """Estimate the KL of each token as pi_ref/pi - 1 - log(pi_ref/pi), which is never negative.

    Unbiased for KL(pi || pi_ref) on samples of pi (Schulman 2020).

    As a loss, it has the gradient of KL(pi_ref || pi). expm1 preserves the tiny values of nearly
    equal policies. Pass the mask if masked positions may hold anything but log-probabilities.

    Args:
        logprobs: [B, T], in nats, of the policy.
        reference_logprobs: [B, T], in nats, of the reference.
        mask: [B, T]: true for tokens that count; None: all.
    """
    # d = log(pi / pi_ref), so pi_ref / pi = exp(-d): k3 = exp(-d) - 1 + d.
    d = log_ratio(logprobs, reference_logprobs, mask)
    return torch.expm1(exponent(-d)) + d


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "k1": kl_k1,
    "k2": kl_k2,
    "k3": kl_k3,
}


def adaptive_kl(kl_coefficient: float, kl: float, target: float, horizon: float, n: float) -> float:
    """The next KL coefficient: kl_coefficient * (1 + clip(kl/target - 1, -0.2, 0.2) * n / horizon).

    Ziegler et al. 2019, section 2.2. `kl` and `target` are means over sequences of the sum over
    tokens; `n` is the number of sequences since the last call. Raises `ValueError` unless target
    and horizon are positive.

    Args:
        kl_coefficient: The present one.
        kl: The measured KL, in nats per sequence.
        target: The wanted KL, in nats per sequence.
        horizon: The number of sequences over which the coefficient adapts.
        n: The number of sequences since the last call.
    """
    if target <= 0 or horizon <= 0:
        raise ValueError(f"target and horizon must be positive, not {target} and {horizon}")
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return kl_coefficient * (1.0 + error * n / horizon)


def entropy_of(log_probabilities: Tensor) -> Tensor:
    """Entropy of distributions given as log-probabilities: [..., V] -> [...] nats."""
    # A forbidden token contributes nothing, but 0 * -inf would be nan.
    finite = log_probabilities.masked_fill(log_probabilities == -math.inf, 0.0)
    return -(log_probabilities.exp() * finite).sum(-1)
