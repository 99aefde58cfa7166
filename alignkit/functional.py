"""The mathematics of alignment as pure functions: no models, no configuration, no state.

Order of the file = order in which data flow:
log-probabilities -> masks and averages -> KL -> rewards -> advantages -> PPO losses -> group losses
-> preference losses -> segment and instruction losses -> reward-model losses -> reward scales -> best-of-n -> judge.

Shapes: ``B`` sequences, ``T`` response tokens, ``V`` vocabulary, ``D`` hidden size, ``P`` pairs or prompts,
``K`` responses of a prompt, ``N`` anything flat. Logarithms are natural: log-probabilities, KL and entropy are in nats.
``logprobs[b, t]`` belongs to ``tokens[b, t]``; nothing here is shifted except ``next_tokens``.
A ``mask`` is true where a token counts; bool, int and float masks are accepted. Losses are minimised.
Half-precision inputs are widened to float32, float64 stays float64.
What the loop, the packer and the sampler do by other means (``next_tokens``, ``token_logprobs``, ``token_entropy``,
``response_mask``, ``position_ids``, ``aggregate``, ``ppo_total``) and what no algorithm calls (``exact_kl``, ``kl_k2``,
best-of-n) is here for tests, analysis and plugins.

Conventions taken where the papers leave a choice open:

- What a mask removes cannot be seen again, neither in values nor in gradients, even if it is inf or 1e30.
- The mean over no token is 0 with a zero gradient; a row without tokens is not counted as a sequence
  (except where the divisor is a constant, as in Dr. GRPO).
- Log-ratios are not clamped (some trainers clamp at 10 or 20), except where exp would overflow the dtype.
- Score and KL: the score is clipped before KL is subtracted, and sits on the last valid token; no token, no score.
- Masked positions are skipped in GAE: the next state is the next *valid* token. V after the end is 0 unless given.
- Whitening has eps inside the root; one value whitens to 0; without mean shift the mean is put back.
- Ties: dropped from rankings, best-of-n takes the first, carry-over the earliest, a judge's tie is no pair.
- Group rewards with one member or without spread have advantage 0.
- IPO takes sums over tokens, as in its paper; pass per-token means for the other variant.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu


def check_shapes(**tensors: Tensor) -> None:
    """Raise ValueError, naming the tensor, unless all have the shape of the first; broadcasting hides mistakes."""
    (first, reference), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape != reference.shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, but {first} has {list(reference.shape)}")


def _wide(x: Tensor) -> Tensor:
    """``x`` in float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def _cut(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x`` with 0 wherever the mask is false. A product would let inf * 0 = nan through, here and in backward."""
    if mask is None:
        return x
    check_shapes(x=x, mask=mask)
    return torch.where(mask.bool(), x, torch.zeros((), dtype=x.dtype, device=x.device))


def _finite_exponent(x: Tensor) -> Tensor:
    """``x`` limited to where exp stays finite (80 in float32, 639 in float64): backward would make 0 * inf = nan."""
    return x.clamp(max=0.9 * math.log(torch.finfo(x.dtype).max))


# --- log-probabilities --------------------------------------------------------------------------------------------


def next_tokens(labels: Tensor, ignore: int = -100) -> tuple[Tensor, Tensor]:
    """Targets of ``logits[:, :-1]`` from unshifted labels [B, T]: (tokens [B, T-1], mask [B, T-1]).

    The first label has no predictor and never counts. Ignored targets become token 0, a valid index, with mask false.
    """
    targets = labels[:, 1:]
    mask = targets != ignore
    return targets.masked_fill(~mask, 0), mask


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    return torch.log_softmax(_wide(logits) / temperature, dim=-1)


def _entropy(log_softmax: Tensor) -> Tensor:
    # A forbidden token has log-probability -inf and adds nothing, but 0 * -inf would be nan.
    finite = log_softmax.masked_fill(log_softmax == -math.inf, 0.0)
    return -(log_softmax.exp() * finite).sum(-1)


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature)[tokens]: logits [..., V], tokens [...] -> [...] nats.

    Raises ValueError if the shapes do not fit or the temperature is not positive.
    """
    check_shapes(tokens=tokens, logits_without_vocabulary=logits[..., 0])
    return _log_softmax(logits, temperature).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def token_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of softmax(logits / temperature): [..., V] -> [...] nats. Forbidden tokens may have logits of -inf."""
    return _entropy(_log_softmax(logits, temperature))


# --- masks and averages -------------------------------------------------------------------------------------------


def response_mask(tokens: Tensor, eos_ids: int | Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Mask of a sampled response [B, T]: (mask [B, T] bool, has_eos [B] bool, lengths [B]).

    The first end token belongs to the response, what follows does not. Padding ids are not looked at, because the
    padding token may be an end token.
    """
    ends = torch.tensor([eos_ids] if isinstance(eos_ids, int) else list(eos_ids), device=tokens.device)
    is_end = torch.isin(tokens, ends.to(tokens.dtype))
    ends_before = is_end.long().cumsum(-1) - is_end.long()
    mask = ends_before == 0
    return mask, is_end.any(-1), mask.sum(-1)


def last_index(mask: Tensor) -> Tensor:
    """Index of the last valid token: [B, T] -> [B], -1 for a row without one."""
    positions = torch.arange(1, mask.shape[-1] + 1, device=mask.device)
    return (mask.bool() * positions).amax(-1) - 1


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that do not depend on padding, left or right: [B, T] -> [B, T], 0 on padding."""
    valid = attention_mask.long()
    return (valid.cumsum(-1) - 1) * valid


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of the valid entries, over everything or along ``dim``."""
    kept = _cut(_wide(x), mask)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of the valid entries, over everything or along ``dim``; 0 with a zero gradient where there are none."""
    count = mask.bool().sum() if dim is None else mask.bool().sum(dim)
    return masked_sum(x, mask, dim) / count.clamp(min=1)


def sum_tokens(x: Tensor, mask: Tensor) -> Tensor:
    """Sum over the valid tokens of each sequence: [B, T] -> [B]. Of log-probabilities: log pi(y | x)."""
    return masked_sum(x, mask, dim=-1)


def mean_tokens(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the valid tokens of each sequence: [B, T] -> [B]."""
    return masked_mean(x, mask, dim=-1)


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True, unbiased: bool = True, eps: float = 1e-8) -> Tensor:
    """(x - mean) / sqrt(variance + eps) over all valid entries; 0 on masked ones. Same shape as ``x``, no gradient.

    ``unbiased``: sample variance. ``shift_mean=False`` puts the mean back, so only the scale changes (Ziegler et al.
    2019, lm-human-preferences). Call it on the whole batch: statistics of parts are different numbers.
    """
    with torch.no_grad():
        values, count = _wide(x), mask.bool().sum()
        mean = masked_mean(values, mask)
        # The root of eps is 1e-4: without a second pass, rounding in the mean would show up 10,000 times larger.
        mean = mean + masked_mean(values - mean, mask)
        variance = masked_sum((values - mean) ** 2, mask) / (count - int(unbiased)).clamp(min=1)
        white = (values - mean) * torch.rsqrt(variance + eps)
        return _cut(white if shift_mean else white + mean, mask)


def aggregate(x: Tensor, mask: Tensor, mode: str, constant: float | None = None) -> Tensor:
    """One number from per-token losses [B, T].

    - ``token_mean``: every token weighs the same (DAPO eq. 8).
    - ``seq_mean_token_mean``: mean over sequences of their token means (GRPO eq. 3).
    - ``seq_mean_token_sum``: mean over sequences of their token sums.
    - ``seq_mean_token_sum_norm``: sum over all tokens / (B * ``constant``, default T), empty rows included in B
      (Dr. GRPO, Liu et al. 2025): every token weighs the same in every batch of this size.

    Raises ValueError for another mode. The denominators are those of the tensors given: not for micro-batches.
    """
    if mode == "token_mean":
        return masked_mean(x, mask)
    if mode == "seq_mean_token_sum_norm":
        return masked_sum(x, mask) / (max(len(x), 1) * float(x.shape[-1] if constant is None else constant))
    rows = mask.bool().any(-1).sum().clamp(min=1)
    if mode == "seq_mean_token_mean":
        return mean_tokens(x, mask).sum() / rows
    if mode == "seq_mean_token_sum":
        return masked_sum(x, mask) / rows
    raise ValueError(f"unknown mode of aggregation: {mode!r}")


# --- KL -----------------------------------------------------------------------------------------------------------


def _log_ratio(logprobs: Tensor, other: Tensor, mask: Tensor | None) -> Tensor:
    check_shapes(logprobs=logprobs, other_logprobs=other)
    return _cut(_wide(logprobs) - _wide(other), mask)


def kl_k1(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor | None = None) -> Tensor:
    """log pi - log pi_ref per token, nats: unbiased for KL(pi || pi_ref) on samples of pi; may be negative.

    Schulman 2020, "Approximating KL divergence". The one to penalise in a reward; as a loss its mean gradient is 0.
    """
    return _log_ratio(logprobs, reference_logprobs, mask)


def kl_k2(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor | None = None) -> Tensor:
    """(log pi - log pi_ref)^2 / 2 per token: biased value, but as a loss its gradient is that of KL(pi || pi_ref)."""
    return _log_ratio(logprobs, reference_logprobs, mask) ** 2 / 2


def kl_k3(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor | None = None) -> Tensor:
    """pi_ref/pi - 1 - log(pi_ref/pi) per token: unbiased for KL(pi || pi_ref), never negative (Schulman 2020).

    As a loss its gradient is that of KL(pi_ref || pi). expm1 keeps the tiny values of nearly equal policies. Pass the
    mask if masked positions may hold anything but log-probabilities.
    """
    d = _log_ratio(logprobs, reference_logprobs, mask)
    return torch.expm1(_finite_exponent(-d)) + d


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


def exact_kl(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(softmax(logits) || softmax(reference_logits)) over the whole vocabulary: [..., V] -> [...] nats."""
    check_shapes(logits=logits, reference_logits=reference_logits)
    p, q = torch.log_softmax(_wide(logits), -1), torch.log_softmax(_wide(reference_logits), -1)
    return (p.exp() * torch.where(p == -math.inf, 0.0, p - q)).sum(-1)


def adaptive_kl(beta: float, kl: float, target: float, horizon: float, n: float) -> float:
    """The next KL coefficient: beta (1 + clip(kl/target - 1, -0.2, 0.2) n / horizon). Ziegler et al. 2019, section 2.2.

    ``kl`` is the mean over sequences of the sum over tokens, as ``target`` is; ``n`` sequences were seen since the last
    call. Raises ValueError unless target and horizon are positive.
    """
    if target <= 0 or horizon <= 0:
        raise ValueError(f"target and horizon must be positive, not {target} and {horizon}")
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return beta * (1.0 + error * n / horizon)


# --- rewards ------------------------------------------------------------------------------------------------------


def missing_eos_penalty(
    scores: Tensor, has_eos: Tensor, penalty: float | None = None, replace: float | None = None
) -> Tensor:
    """Scores [B] with responses that never ended made worse: ``penalty`` subtracted, or the score replaced.

    Raises ValueError if both are given. With neither, the scores are unchanged.
    """
    check_shapes(scores=scores, has_eos=has_eos)
    if penalty is not None and replace is not None:
        raise ValueError("give a penalty to subtract or a score to replace with, not both")
    if replace is not None:
        return torch.where(has_eos, scores, torch.full_like(scores, replace))
    return scores if penalty is None else torch.where(has_eos, scores, scores - penalty)


def shape_rewards(
    scores: Tensor,
    logprobs: Tensor,
    reference_logprobs: Tensor,
    mask: Tensor,
    beta: float,
    *,
    score_clip: float | None = None,
    estimator: str = "k1",
) -> Tensor:
    """-beta KL on every response token, plus the score [B] on the last one: -> [B, T], 0 elsewhere, no gradient.

    InstructGPT 2022 eq. (2), per token as in Stiennon et al. 2020. The score is clipped to +-score_clip first.
    Raises ValueError for an estimator that is not k1, k2 or k3.
    """
    if estimator not in KL_ESTIMATORS:
        raise ValueError(f"unknown KL estimator: {estimator!r}")
    check_shapes(logprobs=logprobs, mask=mask)
    last = last_index(mask)
    check_shapes(scores=scores, mask_rows=last)
    with torch.no_grad():
        if score_clip is not None:
            scores = scores.clamp(-score_clip, score_clip)
        rewards = -beta * KL_ESTIMATORS[estimator](logprobs, reference_logprobs, mask)
        positions = torch.arange(mask.shape[-1], device=mask.device)
        final = positions == last.unsqueeze(-1)
        return rewards + _cut(_wide(scores).unsqueeze(-1).expand(final.shape), final)


# --- advantages ---------------------------------------------------------------------------------------------------


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float, bootstrap: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: rewards, values, mask [B, T] -> (advantages, returns) [B, T], no gradient.

    delta_t = r_t + gamma V_next - V_t,  A_t = delta_t + gamma lam A_next,  returns = A + V.  Schulman et al. 2016,
    eq. (16). ``next`` is the next valid token, however many masked ones lie between. ``bootstrap`` [B] is the value
    after the last token: 0 for an episode that ended (the default for all), V of the next state for one that was cut.
    """
    check_shapes(rewards=rewards, values=values, mask=mask)
    with torch.no_grad():
        keep = mask.bool()
        rewards, values = _wide(rewards), _wide(values)
        advantage = rewards.new_zeros(len(rewards))
        next_value = advantage if bootstrap is None else bootstrap.to(rewards)
        check_shapes(mask_rows=advantage, bootstrap=next_value)
        columns = []
        for t in reversed(range(rewards.shape[1])):
            delta = rewards[:, t] + gamma * next_value - values[:, t]
            advantage = torch.where(keep[:, t], delta + gamma * lam * advantage, advantage)
            next_value = torch.where(keep[:, t], values[:, t], next_value)
            columns.append(advantage)
        advantages = _cut(torch.stack(columns[::-1], dim=1), keep) if columns else rewards
        return advantages, _cut(advantages + values, keep)


def reinforce_returns(scores: Tensor, kl: Tensor, mask: Tensor, beta: float) -> Tensor:
    """score - beta * (KL from this token to the end): scores [B], kl [B, T] -> [B, T]. REINFORCE++, Hu 2025."""
    remaining = _cut(_wide(kl), mask).flip(-1).cumsum(-1).flip(-1)
    return _cut(_wide(scores).unsqueeze(-1) - beta * remaining, mask)


def group_mean(rewards: Tensor, group: Tensor) -> Tensor:
    """Mean reward of the group that each response belongs to: rewards [N], group ids [N] -> [N]."""
    check_shapes(rewards=rewards, group=group)
    inverse = torch.unique(group, return_inverse=True)[1]
    rewards = _wide(rewards)
    sums = rewards.new_zeros(len(rewards)).index_add(0, inverse, rewards)
    sizes = torch.bincount(inverse, minlength=len(rewards)).clamp(min=1)
    return (sums / sizes)[inverse]


def group_size(group: Tensor) -> Tensor:
    """Number of responses in the group that each one belongs to: [N] -> [N]."""
    inverse, counts = torch.unique(group, return_inverse=True, return_counts=True)[1:]
    sizes: Tensor = counts[inverse]
    return sizes


def group_has_spread(rewards: Tensor, group: Tensor) -> Tensor:
    """True where the group's rewards are not all equal, so that it teaches: [N] -> [N]. DAPO, Yu et al. 2025."""
    check_shapes(rewards=rewards, group=group)
    inverse = torch.unique(group, return_inverse=True)[1]
    start = torch.zeros_like(rewards)
    highest = start.scatter_reduce(0, inverse, rewards, "amax", include_self=False)
    lowest = start.scatter_reduce(0, inverse, rewards, "amin", include_self=False)
    return ~(highest <= lowest)[inverse]  # what is not a number must show


def centered_advantages(rewards: Tensor, group: Tensor) -> Tensor:
    """r - mean of the group: [N] -> [N]. Dr. GRPO, Liu et al. 2025."""
    return torch.where(group_has_spread(rewards, group), _wide(rewards) - group_mean(rewards, group), 0.0)


def grpo_advantages(rewards: Tensor, group: Tensor, unbiased: bool = True, eps: float = 1e-4) -> Tensor:
    """(r - mean) / (std + eps) within the group: [N] -> [N]. GRPO, Shao et al. 2024, section 4.1.2.

    The paper names neither the divisor of the variance nor eps; both matter when a group hardly varies.
    """
    centered = centered_advantages(rewards, group)
    size = group_size(group)
    variance = group_mean(centered**2, group) * size / (size - int(unbiased)).clamp(min=1)
    return centered / (variance.sqrt() + eps)


def rloo_advantages(rewards: Tensor, group: Tensor) -> Tensor:
    """r - mean of the *other* members of the group: [N] -> [N]. RLOO, Ahmadian et al. 2024."""
    size = group_size(group)
    return centered_advantages(rewards, group) * size / (size - 1).clamp(min=1)


def overlong_penalty(lengths: Tensor, max_length: int, cache: int) -> Tensor:
    """0 up to max_length - cache, then linearly down to -1 at max_length and beyond: [N] -> [N]. DAPO eq. 13."""
    return ((max_length - cache - _wide(lengths)) / cache).clamp(-1.0, 0.0)


# --- PPO losses ---------------------------------------------------------------------------------------------------


def ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor | None = None) -> Tensor:
    """pi / pi_old per token: [B, T] -> [B, T]; 1 where masked."""
    # Masked at the input of exp: masked after it, the gradient would be 0 * inf.
    return _finite_exponent(_log_ratio(logprobs, old_logprobs, mask)).exp()


def sequence_log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Mean over tokens of log(pi / pi_old): [B, T] -> [B], the log of GSPO's importance ratio (Zheng et al. 2025)."""
    return mean_tokens(_log_ratio(logprobs, old_logprobs, mask), mask)


def ppo_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_range_high: float,
    dual_clip: float | None = None,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_range_high) A) per token: [B, T] -> [B, T], unreduced, 0 where masked.

    Schulman et al. 2017, eq. (7); clip_range_high > clip_low is DAPO's clip-higher. ``dual_clip`` c > 1 bounds the loss by
    c |A| where A < 0 (Ye et al. 2019). Gradients flow through ``logprobs`` only. Any shape will do: GSPO passes [B].
    """
    check_shapes(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip must be greater than 1, not {dual_clip}")
    advantages = _cut(_wide(advantages.detach()), mask)
    r = ratio(logprobs, old_logprobs.detach(), mask)
    objective = torch.minimum(r * advantages, r.clamp(1 - clip_low, 1 + clip_range_high) * advantages)
    if dual_clip is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, dual_clip * advantages), objective)
    return -objective


def clipped(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_range_high: float,
    mask: Tensor | None = None,
) -> Tensor:
    """1 for a token whose gradient the clip removes, i.e. clip(r) A < r A: [B, T] -> [B, T], 0 elsewhere."""
    with torch.no_grad():
        r, advantages = ratio(logprobs, old_logprobs, mask), _wide(advantages)
        return (r.clamp(1 - clip_low, 1 + clip_range_high) * advantages < r * advantages).to(r.dtype)


def ratio_clip_fraction(
    logprobs: Tensor, old_logprobs: Tensor, clip_low: float, clip_range_high: float, mask: Tensor | None = None
) -> Tensor:
    """Share of valid tokens whose ratio is outside the clip range, on either side of A: scalar, no gradient."""
    with torch.no_grad():
        r = ratio(logprobs, old_logprobs, mask)
        outside = (r < 1 - clip_low) | (r > 1 + clip_range_high)
        return masked_mean(outside.to(r.dtype), torch.ones_like(r) if mask is None else mask)


def ppo_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None, *, mask: Tensor | None = None
) -> Tensor:
    """0.5 max((V - G)^2, (V_old + clip(V - V_old) - G)^2) per token: [B, T] -> [B, T], 0 where masked.

    OpenAI baselines; not in the PPO paper. The maximum is the pessimistic choice. ``clip`` None: plain squared error.
    Gradients flow through ``values`` only.
    """
    check_shapes(values=values, old_values=old_values, returns=returns)
    v, old, target = (_cut(_wide(x), mask) for x in (values, old_values.detach(), returns.detach()))
    loss = (v - target) ** 2
    if clip is not None:
        loss = torch.maximum(loss, (old + (v - old).clamp(-clip, clip) - target) ** 2)
    return 0.5 * loss


def value_clipped(
    values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None, mask: Tensor | None = None
) -> Tensor:
    """1 for a token where the clipped value error is the larger one, so that it has no gradient: [B, T] -> [B, T]."""
    with torch.no_grad():
        v, old, target = (_cut(_wide(x), mask) for x in (values, old_values, returns))
        limit = math.inf if clip is None else clip
        moved = (v - old).abs() > limit
        larger = (old + (v - old).clamp(-limit, limit) - target).abs() > (v - target).abs()
        # Inside the range old + (v - old) may differ from v by rounding, which must not count.
        return (moved & larger).to(v.dtype)


def ppo_total(
    policy_loss: Tensor,
    value_loss: Tensor,
    entropy: Tensor,
    ptx_nll: Tensor,
    *,
    value_coef: float,
    entropy_coef: float,
    ptx_coef: float,
) -> Tensor:
    """policy + value_coef value - entropy_coef entropy + ptx_coef NLL of pre-training text (scalars).

    InstructGPT 2022 eq. (2) with the sign of a loss. The NLL is a token mean: the size of ptx_coef depends on it.
    """
    return policy_loss + value_coef * value_loss - entropy_coef * entropy + ptx_coef * ptx_nll


# --- preference losses --------------------------------------------------------------------------------------------


def implicit_reward(logprobs: Tensor, reference_logprobs: Tensor, beta: float) -> Tensor:
    """beta (log pi(y|x) - log pi_ref(y|x)) of sequences: [N] -> [N]. Rafailov et al. 2023, eq. (5) without log Z."""
    return beta * _log_ratio(logprobs, reference_logprobs, None)


def preference_loss(logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - e) log sigma(z) - e log sigma(-z) per pair: [P] -> [P]. DPO (Rafailov et al. 2023, eq. 7) for e = 0.

    z = beta ([log pi(y_w) - log pi_ref(y_w)] - [log pi(y_l) - log pi_ref(y_l)]) for DPO; e > 0 is cDPO (Mitchell 2023,
    eq. 3). Also SimPO (z = beta (mean_w - mean_l) - gamma) and CPO (z = beta (log pi(y_w) - log pi(y_l))).
    """
    logits = _wide(logits)
    if label_smoothing == 0.0:
        return -logsigmoid(logits)
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


def robust_loss(beta_h: Tensor, label_smoothing: float) -> Tensor:
    """[-(1 - e) log sigma(z) + e log sigma(-z)] / (1 - 2e) per pair: unbiased when a share e of labels is flipped.

    Chowdhury et al. 2024. May be negative. Raises ValueError unless 0 <= e < 0.5.
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), not {label_smoothing}")
    z, e = _wide(beta_h), label_smoothing
    return (-(1 - e) * logsigmoid(z) + e * logsigmoid(-z)) / (1 - 2 * e)


def hinge_loss(beta_h: Tensor) -> Tensor:
    """max(0, 1 - beta h) per pair: [P] -> [P]. SLiC-HF, Zhao et al. 2023."""
    return relu(1 - _wide(beta_h))


def ipo_loss(h: Tensor, beta: float) -> Tensor:
    """(h - 1 / (2 beta))^2 per pair: [P] -> [P]; h is *not* multiplied by beta. Azar et al. 2023, eq. (17)."""
    return (_wide(h) - 1 / (2 * beta)) ** 2


def kto_reference_point(log_ratios: Tensor) -> Tensor:
    """max(0, mean of log pi/pi_ref) over *mismatched* prompts and responses of the whole batch: [N] -> scalar nats.

    Ethayarajh et al. 2024, section 4.2: an estimate of KL(pi || pi_ref). No gradient; clamped after the mean.
    """
    return _wide(log_ratios.detach()).mean().clamp(min=0)


def kto_loss(
    log_ratios: Tensor,
    reference_point: Tensor,
    desirable: Tensor,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """lambda_y - v(x, y) per response, log_ratios = log pi/pi_ref [N] -> [N]. Ethayarajh et al. 2024, eq. (8)."""
    check_shapes(log_ratios=log_ratios, desirable=desirable)
    z = beta * (_wide(log_ratios) - reference_point)
    # 1 - sigma(z) = sigma(-z): the difference would lose everything to rounding for large z.
    return torch.where(desirable.bool(), desirable_weight * torch.sigmoid(-z), undesirable_weight * torch.sigmoid(z))


def log_odds(mean_logprobs: Tensor) -> Tensor:
    """log(P / (1 - P)) with P = exp(mean token log-probability): [N] -> [N]. ORPO, Hong et al. 2024, eq. (4).

    P is kept one rounding step below 1, so that the odds of a certain response are large but finite.
    """
    x = _wide(mean_logprobs)
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    return x - torch.log(-torch.expm1(x))  # exact where P is near 1; elsewhere x is the larger part


# --- segment and instruction losses -------------------------------------------------------------------------------


def segment_advantage(logprobs: Tensor, mask: Tensor, alpha: float, gamma: float = 1.0) -> Tensor:
    """sum_t gamma^t alpha log pi(a_t | s_t), t from 0 at the start: [N, T] -> [N]. CPL, Hejna et al. 2023."""
    weights = alpha * gamma ** torch.arange(mask.shape[-1], device=mask.device, dtype=_wide(logprobs).dtype)
    return (_cut(_wide(logprobs), mask) * weights).sum(-1)


def cpl_loss(first: Tensor, second: Tensor, p: Tensor | float = 1.0, lam: float = 1.0) -> Tensor:
    """-p log sigma(S1 - lam S2) - (1 - p) log sigma(S2 - lam S1) per pair of segments: [P] -> [P].

    Hejna et al. 2023, eq. (5), with the conservative weight lam in (0, 1] on the losing segment of section 3.3.
    """
    check_shapes(first=first, second=second)
    first, second = _wide(first), _wide(second)
    return -p * logsigmoid(first - lam * second) - (1 - p) * logsigmoid(second - lam * first)


def instruction_contrast(logprobs: Tensor, own: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """-log softmax over instructions of the one that an output fulfils: outputs by instructions [N, M] -> [N].

    ``own`` [N] is that instruction's index, by default the diagonal's. With label_smoothing e it counts 1 - e and the
    others share e. HIR's contrastive loss, Zhang et al. 2023, eq. (4); the paper sums over outputs.
    """
    losses = -torch.log_softmax(_wide(logprobs), dim=-1)
    own = torch.arange(len(losses), device=losses.device) if own is None else own
    right = losses.gather(-1, own.unsqueeze(-1)).squeeze(-1)
    if label_smoothing == 0.0:
        return right
    others = losses.scatter(-1, own.unsqueeze(-1), 0.0).sum(-1) / (losses.shape[-1] - 1)
    return (1 - label_smoothing) * right + label_smoothing * others


# --- reward-model losses ------------------------------------------------------------------------------------------


def pairwise_loss(better: Tensor, worse: Tensor, margin: Tensor | float = 0.0, p: Tensor | float = 1.0) -> Tensor:
    """-p log sigma(d) - (1 - p) log sigma(-d), d = better - worse - margin, per pair: [P] -> [P].

    Bradley-Terry: Stiennon et al. 2020, section 3.4; InstructGPT 2022, eq. (1) with K = 2. ``margin``: Llama 2 2023,
    eq. (2), a constant. ``p``: probability that the first is better, where the label is soft (0.5 = tie); the margin
    then favours the first in one term and the second in the other.
    """
    check_shapes(better=better, worse=worse)
    d = _wide(better) - _wide(worse)
    if isinstance(p, float) and p == 1.0:
        return -logsigmoid(d - margin)
    return -p * logsigmoid(d - margin) - (1 - p) * logsigmoid(-d - margin)


def centering_loss(better: Tensor, worse: Tensor) -> Tensor:
    """(better + worse)^2 per pair: [P] -> [P]; pulls the free level of the scores to 0. Eisenstein et al. 2023."""
    check_shapes(better=better, worse=worse)
    return (_wide(better) + _wide(worse)) ** 2


def right_order(better: Tensor, worse: Tensor, ties: str = "strict") -> Tensor:
    """1 for a pair scored in the right order, else 0: [P] -> [P]. A tie is 0 if ``strict``, 0.5 if ``half``.

    Margins play no part. Raises ValueError for another treatment of ties.
    """
    check_shapes(better=better, worse=worse)
    if ties not in ("strict", "half"):
        raise ValueError(f"ties must be 'strict' or 'half', not {ties!r}")
    better, worse = _wide(better), _wide(worse)
    right = (better > worse).to(better.dtype)
    if ties == "half":
        right = right + 0.5 * (better == worse)
    return right


def pairwise_accuracy(better: Tensor, worse: Tensor, ties: str = "strict") -> Tensor:
    """Mean of ``right_order`` over pairs: scalar, 0 for no pairs."""
    right = right_order(better, worse, ties)
    return right.sum() / max(len(right), 1)


def kwise_weights(pair_group: Tensor, responses: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weight of each pair such that its prompt weighs 1, not each pair: [P] -> [P]. InstructGPT 2022, eq. (1).

    1 / (pairs of its group), by group ids [P]. With ``responses`` [P], the K of each pair's group, 1 / C(K, 2) as
    printed in the paper: the same without ties; with ties those groups then weigh less. The loss is
    sum(weights * losses) / number of groups that have pairs.
    """
    if responses is None:
        return group_size(pair_group).to(dtype).reciprocal()
    check_shapes(pair_group=pair_group, responses=responses)
    return 2 / (responses * (responses - 1)).to(dtype)


LLAMA2_LABELS = ("negligibly_better", "slightly_better", "better", "significantly_better")
LLAMA2_MARGINS: dict[str, tuple[float, float, float, float]] = {
    "none": (0.0, 0.0, 0.0, 0.0),
    "small": (0.0, 1 / 3, 2 / 3, 1.0),
    "large": (0.0, 1.0, 2.0, 3.0),
}


def llama2_margin(label: str | int, table: str = "small") -> float:
    """Margin of a comparison for ``pairwise_loss``. Llama 2 2023, table 27.

    ``label`` is one of LLAMA2_LABELS ("unsure" is negligible) or its level, 0 to 3. Raises ValueError otherwise.
    """
    if table not in LLAMA2_MARGINS:
        raise ValueError(f"unknown table of margins {table!r}: one of {', '.join(LLAMA2_MARGINS)}")
    if label == "unsure":
        label = 0
    if isinstance(label, str) and label in LLAMA2_LABELS:
        label = LLAMA2_LABELS.index(label)
    if not isinstance(label, int) or not 0 <= label < 4:
        raise ValueError(f"unknown label {label!r}: one of {', '.join(LLAMA2_LABELS)}, unsure, or a level from 0 to 3")
    return LLAMA2_MARGINS[table][label]


# --- reward scales ------------------------------------------------------------------------------------------------


def reward_normalizer(demo_scores: Tensor) -> tuple[float, float]:
    """(bias, gain) from scores of demonstrations [N]: (score + bias) has mean 0, (score + bias) * gain variance 1.

    Bias alone: Stiennon et al. 2020 and InstructGPT 2022, section 3.5. Both: Ziegler et al. 2019, section 2.1
    (population variance). The gain is 1 if the scores do not vary. Raises ValueError for no scores.
    """
    if demo_scores.numel() == 0:
        raise ValueError("no scores of demonstrations to normalise with")
    scores = demo_scores.detach().flatten().double()
    mean = scores.mean()
    std = (scores - mean).square().mean().sqrt()
    # Equal scores differ from their own mean by rounding; dividing by that would blow every reward up.
    varies = bool(std > 1e-12 * scores.abs().max())
    return -mean.item(), 1 / std.item() if varies else 1.0


def whiten(x: Tensor, unbiased: bool = True, eps: float = 1e-8) -> Tensor:
    """``masked_whiten`` of everything: for scores [N] of a whole batch of responses."""
    return masked_whiten(x, torch.ones_like(x, dtype=torch.bool), unbiased=unbiased, eps=eps)


def llama2_select(helpful: Tensor, safety: Tensor, is_safety: Tensor, threshold: float = 0.15) -> tuple[Tensor, Tensor]:
    """(reward, uses_safety) [N] from probabilities [N]: safety's for safety prompts or below the threshold, strictly.

    R_c of Llama 2 2023, section 3.2.3: a switch per response, not a mixture.
    """
    check_shapes(helpful=helpful, safety=safety, is_safety=is_safety)
    uses_safety = is_safety.bool() | (safety < threshold)
    return torch.where(uses_safety, safety, helpful), uses_safety


def clamped_logit(probabilities: Tensor, eps: float = 1e-6) -> Tensor:
    """log(p / (1 - p)) with p clamped to [eps, 1 - eps]: [N] -> [N] nats."""
    return torch.logit(_wide(probabilities), eps=eps)


def llama2_combine(
    helpful_raw_scores: Tensor,
    safety_raw_scores: Tensor,
    is_safety: Tensor,
    threshold: float = 0.15,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """(raw score [N] of the reward model that decides, uses_safety [N]) from raw scores, i.e. logits, [N].

    Llama 2 2023, section 3.2.3: the threshold is on sigma(score), and LOGIT undoes sigma. Scores are limited to
    the logits of eps and 1 - eps. The paper then whitens (``whiten``) over the batch of responses, for gradient
    methods only, and subtracts beta KL (eq. 4); rankings and curves want the value returned here.
    """
    helpful, safety = _wide(helpful_raw_scores), _wide(safety_raw_scores)
    _, uses_safety = llama2_select(torch.sigmoid(helpful), torch.sigmoid(safety), is_safety, threshold)
    limit = math.log(1 - eps) - math.log(eps)
    return torch.where(uses_safety, safety, helpful).clamp(-limit, limit), uses_safety


# --- best-of-n ----------------------------------------------------------------------------------------------------


def _reward_table(rewards: Tensor | Sequence[Sequence[float | None]]) -> Tensor:
    """[P, K] with nan where a response has no reward; ragged lists are filled up with nan."""
    if isinstance(rewards, Tensor):
        return _wide(rewards)
    rows = [[math.nan if r is None else float(r) for r in row] for row in rewards]
    width = max((len(row) for row in rows), default=0)
    filled = [row + [math.nan] * (width - len(row)) for row in rows]
    return torch.tensor(filled, dtype=torch.float64).view(len(rows), width)


def best_of(rewards: Tensor | Sequence[Sequence[float | None]]) -> tuple[Tensor, Tensor]:
    """(index [P], reward [P]) of the best of K responses to each prompt; the first on ties.

    Llama 2 2023, section 3.2.3. Rewards are [P, K] or a list per prompt; None and nan are never chosen. A prompt
    without any reward has index -1 and reward nan.
    """
    table = _reward_table(rewards)
    if table.shape[1] == 0:
        return torch.full((len(table),), -1), table.new_full((len(table),), math.nan)
    missing = table.isnan()
    index = table.masked_fill(missing, -math.inf).argmax(-1)
    # All finite rewards beat a missing one, but -inf only ties with it.
    index = torch.where(missing.gather(1, index[:, None])[:, 0], (~missing).int().argmax(-1), index)
    reward = table.gather(1, index[:, None])[:, 0]
    return torch.where(missing.all(-1), -1, index), reward


def best_so_far(
    iterations: Sequence[Tensor | Sequence[Sequence[float | None]]],
) -> tuple[Tensor, Tensor, Tensor]:
    """(iteration [I, P], index [I, P], reward [I, P]): the best response of each prompt over iterations 0..i.

    Llama 2 2023, section 3.2.3: keeping the best of all earlier iterations prevents regressions. The earliest wins
    ties. Entries [P, K] may differ in K, not in P; a prompt that an iteration lacks has no rewards there. Iteration and
    index are -1 as long as a prompt has no reward.
    """
    if not iterations:
        raise ValueError("no iterations to carry over")
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    for number, rewards in enumerate(iterations):
        index, reward = best_of(rewards)
        iteration = torch.where(index < 0, -1, number)
        if rows:
            old_iteration, old_index, old_reward = rows[-1]
            check_shapes(earlier_prompts=old_reward, prompts=reward)
            newer = (reward > old_reward) | (old_reward.isnan() & ~reward.isnan())
            iteration = torch.where(newer, iteration, old_iteration)
            index, reward = torch.where(newer, index, old_index), torch.where(newer, reward, old_reward)
        rows.append((iteration, index, reward))
    iterations_, indices, best = (torch.stack(column) for column in zip(*rows, strict=True))
    return iterations_, indices, best


def raft_top(rewards: Tensor, count: int | None = None) -> Tensor:
    """Flat indices, ascending, of the ``count`` best of all P * K responses; default the top 1/K, i.e. P of them.

    RAFT, Dong et al. 2023, the global variant: prompts may get several or none. The lowest index wins ties.
    """
    order = rewards.flatten().argsort(descending=True, stable=True)
    return order[: len(rewards) if count is None else count].sort().values


def expected_best_of_n(rewards: Tensor, n: int) -> Tensor:
    """Unbiased estimate of E[max of n rewards] from K >= n samples: [P, K] -> [P].

    sum_i C(i, n-1) / C(K, n) r_(i) over the ascending order statistics. Raises ValueError unless 1 <= n <= K.
    """
    k = rewards.shape[-1]
    if not 1 <= n <= k:
        raise ValueError(f"the best of {n} cannot be estimated from {k} samples")
    ascending = _wide(rewards).sort(-1).values
    weights = [math.comb(i, n - 1) / math.comb(k, n) for i in range(k)]
    return (ascending * ascending.new_tensor(weights)).sum(-1)


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1)/n nats: KL of best-of-n from its base policy; an upper bound where rewards tie.

    Stiennon et al. 2020, appendix G.3; the bound: Beirami et al. 2024.
    """
    if n < 1:
        raise ValueError(f"n must be positive, not {n}")
    return math.log(n) - (n - 1) / n


def best_of_n_distribution(probs: Tensor, rewards: Tensor, n: int) -> Tensor:
    """Exact policy of best-of-n over a finite set of responses: base policy [V], rewards [V] -> [V].

    P(reward <= r)^n - P(reward < r)^n, shared among equal rewards by their base probability.
    """
    check_shapes(probs=probs, rewards=rewards)
    level = torch.unique(rewards, return_inverse=True)[1]
    mass = _wide(probs).new_zeros(len(probs)).index_add(0, level, _wide(probs))
    up_to = mass.cumsum(0)
    chosen = up_to**n - (up_to - mass).clamp(min=0) ** n
    share = torch.where(mass > 0, chosen / mass.clamp(min=torch.finfo(mass.dtype).tiny), 0.0)
    return _wide(probs) * share[level]


# --- judge --------------------------------------------------------------------------------------------------------


def order_probabilities(logp_ab: Tensor, logp_ba: Tensor) -> tuple[Tensor, Tensor]:
    """P(A better) judged in the order A, B and in the order B, A: [n, 2] each -> ([n], [n]).

    Column 0 is the judge's log-probability of the token that names the first candidate shown, column 1 the second;
    they are normalised over these two tokens. RLAIF, Lee et al. 2023, section 2.1.
    """
    check_shapes(logp_ab=logp_ab, logp_ba=logp_ba)
    ab, ba = _wide(logp_ab), _wide(logp_ba)
    return torch.sigmoid(ab[:, 0] - ab[:, 1]), torch.sigmoid(ba[:, 1] - ba[:, 0])


def judge_probability(logp_ab: Tensor, logp_ba: Tensor) -> Tensor:
    """P(A better) [n]: the mean over both orders, after undoing the swap. Lee et al. 2023, section 2.1."""
    in_ab, in_ba = order_probabilities(logp_ab, logp_ba)
    return (in_ab + in_ba) / 2


def position_inconsistent(logp_ab: Tensor, logp_ba: Tensor) -> Tensor:
    """True [n] where the judge prefers the same *position* in both orders, whatever stands there."""
    in_ab, in_ba = order_probabilities(logp_ab, logp_ba)
    return (in_ab - 0.5) * (in_ba - 0.5) < 0


def hard_label(p: Tensor, tolerance: float = 1e-6) -> Tensor:
    """1, 0, or 0.5 within ``tolerance`` of a tie: [n] -> [n]. A judge that only looks at positions averages to 0.5."""
    p = _wide(p)
    return torch.where((p - 0.5).abs() <= tolerance, 0.5, torch.where(p > 0.5, 1.0, 0.0)).to(p.dtype)


def clamp_cai(p: Tensor, low: float = 0.4, high: float = 0.6) -> Tensor:
    """Probabilities kept in [low, high]: chain of thought makes judges overconfident. Bai et al. 2022b, section 4.1."""
    return p.clamp(low, high)


def soft_label_loss(reward_a: Tensor, reward_b: Tensor, p_a: Tensor) -> Tensor:
    """Cross-entropy of a reward model's preference against the judge's P(A better), per pair: [n] -> [n]."""
    check_shapes(reward_a=reward_a, p_a=p_a)
    return pairwise_loss(reward_a, reward_b, p=p_a)


def preferred(scores: Sequence[Sequence[float]]) -> list[int | None]:
    """Index of the better of two scored samples, None for a tie, i.e. no pair. Online DPO, Guo et al. 2024."""
    return [None if a == b else int(b > a) for a, b in scores]
