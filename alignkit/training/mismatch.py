"""Whether the sampler is the policy that learns, by the log-probabilities of both, and the weights that correct for it.

They differ a little if an engine rounds in another way, and much if it has other weights or reads another prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from alignkit import functional as F
from alignkit.data.group import Group, responses_of
from alignkit.models.shared_model import SharedModel
from alignkit.settings import Importance

# Mean differences, in nats per token, that rounding explains, by the dtype of training. Measured on SmolLM2: 1e-5 in
# float32, sampled here or by vLLM, and 0.05 in bfloat16. A sampler in bfloat16 is 0.004 (tiny) to 0.05 from float32.
ROUNDING = {"float32": 1e-3, "bfloat16": 0.1}
ANOTHER_MODEL = 0.5  # nats per token, which no rounding explains; SmolLM2 without an adapter of 3 steps: 0.6


def sampler_metrics(groups: Sequence[Group], measured: Sequence[Tensor]) -> dict[str, float]:
    """How far the sampler's log-probabilities are from the learner's, which are measured; empty if it tells none.

    Over all tokens of the policy: `sampler_gap`, the mean absolute difference in nats; `sampler_kl`, KL(sampler ||
    learner) in nats per token; and `sampler_ratio_max`, the largest learner / sampler.
    """
    found = []
    for response, learner in zip(responses_of(groups), measured, strict=True):
        # A response that was cut to fit has other tokens than its sampler's numbers, and is left out.
        if response.logprobs is not None and len(response.logprobs) == len(learner):
            # Tokens of others are 0 in both, and would count as perfect agreement.
            written = torch.ones(len(learner)) if response.written is None else torch.tensor(response.written)
            pair = torch.stack([torch.tensor(response.logprobs, dtype=torch.float64), learner.double()])
            found.append(pair[:, written.bool()])
    sampler, learner = torch.cat(found, dim=1) if found else torch.empty(2, 0)
    if not len(sampler):
        return {}
    return {
        "sampler_gap": float((learner - sampler).abs().mean()),
        # k3 is never negative. The noise of k1 is as large as the gap, and would hide the KL, about its square.
        "sampler_kl": float(F.kl_k3(sampler, learner).mean()),
        "sampler_ratio_max": float(F.ratio(learner, sampler).max()),
    }


def weighted(
    advantages: Tensor, old: Tensor, sampler: Tensor, mask: Tensor, importance: Importance, finest: str
) -> tuple[Tensor, dict[str, float]]:
    """Advantages, [R, T] or [R], times the weights of the samples, and the shares that were capped and masked.

    Shares are of counted tokens, or of responses. The result is [R, T] if tokens have weights. old, sampler: the
    log-probabilities, [R, T]. finest: `Needs.advantages`. A loss that is linear in the advantages for weights of 0 and
    more is then weighted, and its KL, entropy and values are not.
    """
    by_response = (importance.level or finest) == "sequence"
    bounds = (importance.mask[0], importance.mask[1]) if importance.mask is not None else None
    weights, ratios = F.importance_weights(old, sampler, mask, importance.cap, bounds, sequence=by_response)
    counted = mask.any(dim=1) if by_response else mask
    shares = {}
    if bounds is not None:
        shares["importance_masked"] = ((ratios < bounds[0]) | (ratios > bounds[1]))[counted]
    if importance.cap is not None:  # what is masked has a weight of 0
        shares["importance_capped"] = ((ratios > importance.cap) & (weights > 0))[counted]
    return times(advantages, weights), {name: float(which.float().mean()) for name, which in shares.items()}


def times(advantages: Tensor, weights: Tensor) -> Tensor:
    """Their product, [R, T] if either is, else [R]."""
    dimensions = max(advantages.dim(), weights.dim())
    advantages, weights = (x if x.dim() == dimensions else x[:, None] for x in (advantages, weights))
    return advantages * weights


def mismatch(metrics: Mapping[str, Any], model: SharedModel) -> str:
    """Why the sampler is not taken for the policy that learns; empty if it is. metrics: with `sampler_metrics`."""
    if "sampler_gap" not in metrics:
        return (
            "the sampler tells no log-probabilities, so nobody checks that it is the policy that learns; leave top_k, "
            "top_p and min_new_tokens out to have it checked"
        )
    exact = model.dtype_name == "float32" and model.spec.quantization == model.spec.mixed_precision == "none"
    dtype = "float32" if exact else "bfloat16"
    if metrics["sampler_gap"] <= ROUNDING[dtype]:
        return ""
    return (
        f"the sampler is not the policy that learns: their log-probabilities differ by {metrics['sampler_gap']:.2g} "
        f"nats per token, of which rounding in {dtype} explains {ROUNDING[dtype]:g}. Perhaps the engine did not load "
        "the adapter, has old weights, reads another prompt (template) or computes in another dtype"
    )
