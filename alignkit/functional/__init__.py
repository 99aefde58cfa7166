"""The mathematics of alignment as pure functions: no models, no configuration, no state.

Shapes: `B` sequences, `T` response tokens, `V` vocabulary, `P` pairs or prompts, `K` responses of a prompt,
`N` anything flat. Logarithms are natural: log-probabilities, KL and entropy are in nats.
`logprobs[b, t]` belongs to `tokens[b, t]`; nothing is shifted. A `mask` is true for tokens that count; it may be
bool, int or float. Losses are minimized and not yet reduced. Half-precision inputs are widened to float32; float64
stays float64.

Some functions define in a few lines what the training loop, the packer and the sampler compute in another way:
`token_logprobs`, `token_entropy`, `response_mask`, `position_ids`, `aggregate`. These, and the best-of-n estimates,
are for tests, analysis and plugins.

Conventions, for choices that the papers leave open:

- A masked entry has no effect on values or gradients, even if it is inf or 1e30.
- The mean of no tokens is 0 with a zero gradient. A row without tokens does not count as a sequence, unless the
  divisor is a constant (Dr. GRPO).
- Log-ratios are not clamped (some trainers clamp at 10 or 20), unless exp would overflow the dtype.
- The score is clipped before the KL penalty is subtracted, and is paid at the last valid token. A response without
  tokens gets no score.
- GAE skips masked positions: the next state is the next *valid* token. V after the end is 0 unless given.
- Whitening adds eps inside the root. A single value becomes 0. Without the mean shift, the mean is added back.
- Ties: rankings drop them, best-of-n takes the first and earliest, and a judge's tie forms no pair.
- In a group with one member or without spread, advantages are 0.
- IPO uses sums over tokens, as in its paper; pass per-token means for the other variant.

Design: docs/architecture.md.
"""

from alignkit.functional._tensors import check_shapes
from alignkit.functional.advantages import (
    centered_advantages,
    gae,
    group_has_spread,
    group_mean,
    group_size,
    grpo_advantages,
    maxrl_advantages,
    missing_eos_penalty,
    overlong_penalty,
    reinforce_returns,
    rloo_advantages,
    shape_rewards,
    slope_within_groups,
    std_within_groups,
)
from alignkit.functional.best_of_n import (
    best_of_n_distribution,
    best_of_n_kl,
    expected_best_of_n,
    most_different,
    raft_top,
)
from alignkit.functional.judge import (
    clamp_cai,
    hard_label,
    judge_probability,
    order_probabilities,
    position_inconsistent,
    preferred,
)
from alignkit.functional.kl import KL_ESTIMATORS, adaptive_kl, kl_k1, kl_k2, kl_k3
from alignkit.functional.logprobs import (
    last_index,
    position_ids,
    response_mask,
    token_entropy,
    token_logprobs,
)
from alignkit.functional.policy_gradient import (
    cispo_policy_loss,
    clipped,
    ppo_policy_loss,
    ppo_value_loss,
    ratio,
    sequence_log_ratio,
    truncated_importance,
    value_clipped,
)
from alignkit.functional.preference import (
    cpl_loss,
    hinge_loss,
    implicit_reward,
    instruction_contrast,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    log_odds,
    preference_loss,
    robust_loss,
    segment_advantage,
)
from alignkit.functional.reductions import (
    aggregate,
    masked_mean,
    masked_sum,
    masked_whiten,
    mean_tokens,
    sum_tokens,
    whiten,
)
from alignkit.functional.reward_model import (
    LLAMA2_LABELS,
    LLAMA2_MARGINS,
    centering_loss,
    kwise_weights,
    llama2_combine,
    llama2_margin,
    llama2_select,
    ordinal_loss,
    ordinal_probabilities,
    pairwise_loss,
    reward_normalizer,
    right_order,
)

__all__ = [
    "KL_ESTIMATORS",
    "LLAMA2_LABELS",
    "LLAMA2_MARGINS",
    "adaptive_kl",
    "aggregate",
    "best_of_n_distribution",
    "best_of_n_kl",
    "centered_advantages",
    "centering_loss",
    "check_shapes",
    "cispo_policy_loss",
    "clamp_cai",
    "clipped",
    "cpl_loss",
    "expected_best_of_n",
    "gae",
    "group_has_spread",
    "group_mean",
    "group_size",
    "grpo_advantages",
    "hard_label",
    "hinge_loss",
    "implicit_reward",
    "instruction_contrast",
    "ipo_loss",
    "judge_probability",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "kto_loss",
    "kto_reference_point",
    "kwise_weights",
    "last_index",
    "llama2_combine",
    "llama2_margin",
    "llama2_select",
    "log_odds",
    "masked_mean",
    "masked_sum",
    "masked_whiten",
    "maxrl_advantages",
    "mean_tokens",
    "missing_eos_penalty",
    "most_different",
    "order_probabilities",
    "ordinal_loss",
    "ordinal_probabilities",
    "overlong_penalty",
    "pairwise_loss",
    "position_ids",
    "position_inconsistent",
    "ppo_policy_loss",
    "ppo_value_loss",
    "preference_loss",
    "preferred",
    "raft_top",
    "ratio",
    "reinforce_returns",
    "response_mask",
    "reward_normalizer",
    "right_order",
    "rloo_advantages",
    "robust_loss",
    "segment_advantage",
    "sequence_log_ratio",
    "shape_rewards",
    "slope_within_groups",
    "std_within_groups",
    "sum_tokens",
    "token_entropy",
    "token_logprobs",
    "truncated_importance",
    "value_clipped",
    "whiten",
]
