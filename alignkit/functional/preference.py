"""Losses that learn from preferences or labels without a reward model: DPO and its relatives, KTO,
ORPO, CPL, HIR.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from alignkit.functional._tensors import check_shapes, widen, zero_masked
from alignkit.functional.kl import log_ratio


def implicit_reward(logprobs: Tensor, reference_logprobs: Tensor, beta: float) -> Tensor:
    """beta (log pi(y|x) - log pi_ref(y|x)) of sequences: [N] -> [N].

    Rafailov et al. 2023, eq. (5) without log Z.

    Args:
        logprobs: [N], in nats, of whole responses, by the policy.
        reference_logprobs: [N], in nats, by the reference.
        beta: The weight of the KL in the implicit reward.
    """
    return beta * log_ratio(logprobs, reference_logprobs, None)


def preference_loss(logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The loss of DPO per pair, with label smoothing e: [P] -> [P].

    -(1 - e) log sigma(z) - e log sigma(-z); for e = 0 Rafailov et al. 2023, eq. 7.

    z = beta ([log pi(y_w) - log pi_ref(y_w)] - [log pi(y_l) - log pi_ref(y_l)]) for DPO; e > 0 is
    cDPO (Mitchell 2023, eq. 3). Also SimPO (z = beta (mean_w - mean_l) - gamma) and CPO (z = beta
    (log pi(y_w) - log pi(y_l))).

    Args:
        logits: [P], the z of the formula.
        label_smoothing: The e of the formula: the probability that a label is wrong, 0 to 0.5.
    """
    z = widen(logits)
    if label_smoothing == 0.0:
        return -logsigmoid(z)
    return -(1 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)


def robust_loss(logits: Tensor, label_smoothing: float) -> Tensor:
    """[-(1 - e) log sigma(z) + e log sigma(-z)] / (1 - 2e) per pair: unbiased when a share e of
    labels is flipped.

    Chowdhury et al. 2024; z as in `preference_loss`. May be negative. Raises `ValueError` unless 0
    <= e < 0.5.

    Args:
        logits: [P], z.
        label_smoothing: The probability that a label is wrong, from 0 to below one half.
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), not {label_smoothing}")
    z, e = widen(logits), label_smoothing
    return (-(1 - e) * logsigmoid(z) + e * logsigmoid(-z)) / (1 - 2 * e)


def hinge_loss(logits: Tensor) -> Tensor:
    """max(0, 1 - z) per pair: [P] -> [P]; z as in `preference_loss`. SLiC-HF, Zhao et al. 2023.

    Args:
        logits: [P], z.
    """
    return relu(1 - widen(logits))


def ipo_loss(h: Tensor, beta: float) -> Tensor:
    """(h - 1 / (2 beta))^2 per pair: [P] -> [P]; h is *not* multiplied by beta. Azar et al. 2023,
    eq. (17).

    Args:
        h: [P], the log-ratio of the better response minus that of the other one.
        beta: The weight of the KL, which sets the target 1 / (2 beta).
    """
    return (widen(h) - 1 / (2 * beta)) ** 2


def kto_reference_point(log_ratios: Tensor) -> Tensor:
    """max(0, mean of log pi/pi_ref) over *mismatched* prompts and responses of the whole batch: [N]
    -> scalar nats.

    Ethayarajh et al. 2024, section 4.2: an estimate of KL(pi || pi_ref). No gradient; clamped after
    averaging.
    """
    return widen(log_ratios.detach()).mean().clamp(min=0)


def kto_loss(
    log_ratios: Tensor,
    reference_point: Tensor,
    desirable: Tensor,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """lambda_y - v(x, y) per response, log_ratios = log pi/pi_ref [N] -> [N]. Ethayarajh et al.
    2024, eq. (8).
    """
    check_shapes(log_ratios=log_ratios, desirable=desirable)
    # The value is sigma(z) of a desirable response and sigma(-z) of an undesirable one.
    z = beta * (widen(log_ratios) - reference_point)
    # 1 - sigma(z) = sigma(-z), but the subtraction would lose all digits for large z.
    return torch.where(
        desirable.bool(),
        desirable_weight * torch.sigmoid(-z),
        undesirable_weight * torch.sigmoid(z),
    )


def log_odds(mean_logprobs: Tensor) -> Tensor:
    """log(P / (1 - P)) with P = exp(mean token log-probability): [N] -> [N]. ORPO, Hong et al.
    2024, eq. (4).

    P is kept one rounding step below 1, so that the odds of a certain response are large but
    finite.
    """
    x = widen(mean_logprobs)
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    return x - torch.log(-torch.expm1(x))  # expm1 is exact for P near 1; elsewhere x dominates


def segment_advantage(logprobs: Tensor, mask: Tensor, alpha: float, gamma: float = 1.0) -> Tensor:
    """sum_t gamma^t alpha log pi(a_t | s_t), t from 0 at the start: [N, T] -> [N]. CPL, Hejna et
    al. 2023.
    """
    weights = alpha * gamma ** torch.arange(
        mask.shape[-1], device=mask.device, dtype=widen(logprobs).dtype
    )
    return (zero_masked(widen(logprobs), mask) * weights).sum(-1)


def cpl_loss(first: Tensor, second: Tensor, p: Tensor | float = 1.0, lam: float = 1.0) -> Tensor:
    """-p log sigma(S1 - lam S2) - (1 - p) log sigma(S2 - lam S1) per pair of segments: [P] -> [P].

    Hejna et al. 2023, eq. (5); lam in (0, 1] is the conservative weight of the losing segment from
    section 3.3.
    """
    check_shapes(first=first, second=second)
    first, second = widen(first), widen(second)
    # A soft label: the expectation over which segment is better. lam weighs the one that is not.
    return -p * logsigmoid(first - lam * second) - (1 - p) * logsigmoid(second - lam * first)


def instruction_contrast(
    logprobs: Tensor, instruction_index: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """-log softmax over instructions, at the one that the output fulfills: outputs by instructions
    [N, M] -> [N].

    `instruction_index` [N] says which one that is, by default the diagonal. With label_smoothing e
    it has weight 1 - e and the others share e. HIR's contrastive loss, Zhang et al. 2023, eq. (4);
    the paper sums over outputs.
    """
    losses = -torch.log_softmax(widen(logprobs), dim=-1)
    index = instruction_index
    if index is None:
        index = torch.arange(len(losses), device=losses.device)
    right = losses.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    if label_smoothing == 0.0 or losses.shape[-1] == 1:  # without others, nothing to share
        return right
    others = losses.scatter(-1, index.unsqueeze(-1), 0.0).sum(-1) / (losses.shape[-1] - 1)
    return (1 - label_smoothing) * right + label_smoothing * others
