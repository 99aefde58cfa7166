"""Log-probabilities and entropies of tokens, the masks and positions of sampled sequences, estimates
of the KL divergence between two policies from sampled tokens, and its adaptive coefficient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from alignkit.functional._tensors import check_shapes, exponent, widen, zero_masked


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature)[tokens]: logits [..., V], tokens [...] -> [...] nats.

    Raises `ValueError` if the shapes do not match or the temperature is not positive.
    """
    check_shapes(tokens=tokens, logits_without_vocabulary=logits[..., 0])
    return log_softmax(logits, temperature).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def token_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of softmax(logits / temperature): [..., V] -> [...] nats. A logit of -inf forbids its
    token.
    """
    return entropy_of(log_softmax(logits, temperature))


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) in float32 or wider; `ValueError` unless the temperature is
    positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    return torch.log_softmax(widen(logits) / temperature, dim=-1)


def entropy_of(log_probabilities: Tensor) -> Tensor:
    """Entropy of distributions given as log-probabilities: [..., V] -> [...] nats."""
    # A forbidden token contributes nothing, but 0 * -inf would be nan.
    finite = log_probabilities.masked_fill(log_probabilities == -math.inf, 0.0)
    return -(log_probabilities.exp() * finite).sum(-1)


def response_mask(tokens: Tensor, eos_ids: int | Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Mask of sampled responses [B, T]: (mask [B, T] bool, has_eos [B] bool, lengths [B]).

    A response ends with its first end token and includes it. Padding ids are ignored, because the
    padding token may be an end token.
    """
    ends = torch.tensor(
        [eos_ids] if isinstance(eos_ids, int) else list(eos_ids), device=tokens.device
    )
    is_end = torch.isin(tokens, ends.to(tokens.dtype))
    # Ends before the token, itself excluded, so that the first end token still counts.
    ends_before = is_end.long().cumsum(-1) - is_end.long()
    mask = ends_before == 0
    return mask, is_end.any(-1), mask.sum(-1)


def last_index(mask: Tensor) -> Tensor:
    """Index of the last valid token of each row: [B, T] -> [B], -1 for a row without one."""
    # From 1, so that 0 means masked; the 1 is subtracted again, and an empty row has -1.
    positions = torch.arange(1, mask.shape[-1] + 1, device=mask.device)
    return (mask.bool() * positions).amax(-1) - 1


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that ignore padding on either side: [B, T] -> [B, T], 0 on padding."""
    valid = attention_mask.long()
    return (valid.cumsum(-1) - 1) * valid  # padding on the left would have -1


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
    """
    if target <= 0 or horizon <= 0:
        raise ValueError(f"target and horizon must be positive, not {target} and {horizon}")
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return kl_coefficient * (1.0 + error * n / horizon)
