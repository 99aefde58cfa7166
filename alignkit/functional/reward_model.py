"""Reward models: pairwise losses, the weights and margins of pairs, normalization, and Llama 2's
two rewards.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from alignkit.functional._tensors import check_shapes, nearly_equal, widen
from alignkit.functional.advantages import group_size


def pairwise_loss(
    better: Tensor, worse: Tensor, margin: Tensor | float = 0.0, p: Tensor | float = 1.0
) -> Tensor:
    """-p log sigma(d - margin) - (1 - p) log sigma(-d - margin), d = better - worse, per pair: [P]
    -> [P].

    Bradley-Terry: Stiennon et al. 2020, section 3.4; InstructGPT 2022, eq. (1) with K = 2.
    `margin`: Llama 2 2023, eq. (2), a constant. `p`: the probability that the first response is
    better, for soft labels (0.5 is a tie), such as an AI judge's.
    """
    check_shapes(better=better, worse=worse)
    d = widen(better) - widen(worse)
    if isinstance(p, float) and p == 1.0:
        return -logsigmoid(d - margin)
    return -p * logsigmoid(d - margin) - (1 - p) * logsigmoid(-d - margin)


def centering_loss(better: Tensor, worse: Tensor) -> Tensor:
    """(better + worse)^2 per pair: [P] -> [P].

    Pairs leave the level of the scores undetermined; this pulls it to 0. Eisenstein et al. 2023.
    """
    check_shapes(better=better, worse=worse)
    return (widen(better) + widen(worse)) ** 2


def right_order(better: Tensor, worse: Tensor, ties: str = "strict") -> Tensor:
    """1 for pairs scored in the right order, else 0: [P] -> [P]. A tie is 0 if `strict`, 0.5 if
    `half`.

    Ignores margins. Raises `ValueError` for any other treatment of ties.
    """
    check_shapes(better=better, worse=worse)
    if ties not in ("strict", "half"):
        raise ValueError(f"ties must be 'strict' or 'half', not {ties!r}")
    better, worse = widen(better), widen(worse)
    right = (better > worse).to(better.dtype)
    return right + 0.5 * (better == worse) if ties == "half" else right


def kwise_weights(
    group_index: Tensor, responses: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Weights of pairs that sum to 1 for each prompt: group_index [P] -> [P]. InstructGPT 2022, eq.
    (1).

    By default 1 / (pairs of the group). `responses` [P], the K of each pair's group, selects 1 /
    C(K, 2) as printed in the paper: the same without ties, smaller for groups with ties. The loss
    is sum(weights * losses) / number of groups that have pairs.
    """
    if responses is None:
        return group_size(group_index).to(dtype).reciprocal()
    check_shapes(group_index=group_index, responses=responses)
    return 2 / (responses * (responses - 1)).to(dtype)


def ordinal_loss(scores: Tensor, levels: Tensor, thresholds: Tensor) -> Tensor:
    """-log P(level) of ratings under an ordered logit: scores [N], levels [N] int64 from 0,
    thresholds [K - 1] -> [N].

    P(level <= k) = sigma(thresholds[k] - score), with increasing thresholds (McCullagh 1980,
    section 2.3).
    """
    check_shapes(scores=scores, levels=levels)
    infinite = thresholds.new_full((1,), math.inf)
    # [K + 1]; the outer levels are open
    bounds = torch.cat([-infinite, thresholds, infinite]).to(widen(scores))
    # P(level) = sigma(high) - sigma(low).
    low, high = bounds[levels] - widen(scores), bounds[levels + 1] - widen(scores)
    # sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - exp(b - a)), which does not cancel in the tails.
    width = torch.where(low.isinf() | high.isinf(), math.inf, bounds[levels + 1] - bounds[levels])
    return -(logsigmoid(high) + logsigmoid(-low) + torch.log(-torch.expm1(-width)))


def ordinal_probabilities(scores: Tensor, thresholds: Tensor) -> Tensor:
    """P(level) of an ordered logit: scores [N], thresholds [K - 1] -> [N, K]."""
    below = torch.sigmoid(thresholds.to(widen(scores)) - widen(scores).unsqueeze(-1))
    first, last = torch.zeros_like(below[:, :1]), torch.ones_like(below[:, :1])
    return torch.cat([first, below, last], dim=1).diff(dim=1)


def reward_normalizer(demo_scores: Tensor) -> tuple[float, float]:
    """(bias, gain) from scores of demonstrations [N]: score + bias has mean 0, (score + bias) *
    gain variance 1.

    Stiennon et al. 2020 and InstructGPT 2022, section 3.5, use the bias only; Ziegler et al. 2019,
    section 2.1, both (population variance). The gain is 1 if the scores do not vary. Raises
    `ValueError` without scores.
    """
    if demo_scores.numel() == 0:
        raise ValueError("normalizing rewards needs at least one demonstration with a score")
    scores = demo_scores.detach().flatten().double()
    mean = scores.mean()
    std = (scores - mean).square().mean().sqrt()
    # Dividing by the deviation of scores that differ by rounding would blow every reward up.
    varies = not nearly_equal(scores.max(), scores.min())
    return -mean.item(), 1 / std.item() if varies else 1.0


# --- Llama 2 (Touvron et al. 2023)

LLAMA2_LABELS = ("negligibly_better", "slightly_better", "better", "significantly_better")
LLAMA2_MARGINS: dict[str, tuple[float, float, float, float]] = {
    "none": (0.0, 0.0, 0.0, 0.0),
    "small": (0.0, 1 / 3, 2 / 3, 1.0),
    "large": (0.0, 1.0, 2.0, 3.0),
}


def llama2_margin(label: str | int, table: str = "small") -> float:
    """Margin of a comparison for `pairwise_loss`. Llama 2 2023, table 27.

    `label` is one of LLAMA2_LABELS ("unsure" means negligibly_better) or its level, 0 to 3. Raises
    `ValueError` for anything else.
    """
    if table not in LLAMA2_MARGINS:
        raise ValueError(f"unknown table of margins {table!r}: choose {', '.join(LLAMA2_MARGINS)}")
    if label == "unsure":
        label = 0
    if isinstance(label, str) and label in LLAMA2_LABELS:
        label = LLAMA2_LABELS.index(label)
    if not isinstance(label, int) or not 0 <= label < 4:
        choices = ", ".join(LLAMA2_LABELS)
        raise ValueError(
            f"unknown label {label!r}: choose {choices}, unsure, or a level from 0 to 3"
        )
    return LLAMA2_MARGINS[table][label]


def llama2_select(
    helpful: Tensor, safety: Tensor, is_safety: Tensor, threshold: float = 0.15
) -> tuple[Tensor, Tensor]:
    """(reward, uses_safety) [N] from probabilities [N]: safety's for safety prompts or strictly
    below the threshold.

    R_c of Llama 2 2023, section 3.2.3: a choice per response, not a mixture.
    """
    check_shapes(helpful=helpful, safety=safety, is_safety=is_safety)
    uses_safety = is_safety.bool() | (safety < threshold)
    return torch.where(uses_safety, safety, helpful), uses_safety


def llama2_combine(
    helpful_raw_scores: Tensor,
    safety_raw_scores: Tensor,
    is_safety: Tensor,
    threshold: float = 0.15,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """(raw score of the deciding reward model, uses_safety), both [N], from raw scores, i.e.
    logits, [N].

    Llama 2 2023, section 3.2.3: the threshold applies to sigma(score), and the paper's LOGIT undoes
    sigma. Scores are clamped to the logits of eps and 1 - eps. For gradient methods the paper then
    whitens (`whiten`) over the batch of responses and subtracts beta KL (eq. 4); use the value
    returned here for rankings and curves.
    """
    helpful, safety = widen(helpful_raw_scores), widen(safety_raw_scores)
    _, uses_safety = llama2_select(
        torch.sigmoid(helpful), torch.sigmoid(safety), is_safety, threshold
    )
    limit = math.log(1 - eps) - math.log(eps)
    return torch.where(uses_safety, safety, helpful).clamp(-limit, limit), uses_safety
