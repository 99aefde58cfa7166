"""The mathematics of alignment as pure functions: no models, no configuration, no state.

Shapes: `B` sequences, `T` response tokens, `V` vocabulary, `P` pairs or prompts, `K` responses of a
prompt, `N` anything flat. Logarithms are natural: log-probabilities, KL and entropy are in nats.
`logprobs[b, t]` belongs to `tokens[b, t]`; nothing is shifted. A `mask` is true for tokens that
count; it may be bool, int or float. Losses are minimized and not yet reduced. Half-precision inputs
are widened to float32; float64 stays float64.

Conventions, for choices that the papers leave open:

- A masked entry has no effect on values or gradients, even if it is inf or 1e30.
- The mean of no tokens is 0 with a zero gradient. A row without tokens does not count as a
  sequence, unless the divisor is a constant (Dr. GRPO).
- Log-ratios are not clamped (some trainers clamp at 10 or 20), unless exp would overflow the dtype.
- The score is clipped before the KL penalty is subtracted, and is paid at the last valid token. A
  response without tokens gets no score.
- GAE skips masked positions: the next state is the next *valid* token. V after the end is 0 unless
  given.
- Whitening adds eps inside the root. A single value becomes 0. Without the mean shift, the mean is
  added back.
- Ties: rankings drop them, best-of-n takes the first and earliest, and a judge's tie forms no pair.
- In a group with one member or without spread, advantages are 0.
- IPO uses sums over tokens, as in its paper; pass per-token means for the other variant.

Design: docs/architecture.md.
"""

# `__all__` is what plugins of others may rely on: all that ppo, grpo and dpo call. Other names may
# change with alignkit's own plugins.
# ruff: isort: skip_file

from alignkit.functional._tensors import (
    check_shapes as check_shapes,
    nearly_equal as nearly_equal,
)
from alignkit.functional.advantages import (
    centered_advantages as centered_advantages,
    gae as gae,
    group_has_spread as group_has_spread,
    group_mean as group_mean,
    group_size as group_size,
    grpo_advantages as grpo_advantages,
    maxrl_advantages as maxrl_advantages,
    missing_eos_penalty as missing_eos_penalty,
    overlong_penalty as overlong_penalty,
    reinforce_returns as reinforce_returns,
    rloo_advantages as rloo_advantages,
    shape_rewards as shape_rewards,
    slope_within_groups as slope_within_groups,
    std_within_groups as std_within_groups,
)
from alignkit.functional.best_of_n import (
    best_of_n_kl as best_of_n_kl,
    expected_best_of_n as expected_best_of_n,
    raft_top as raft_top,
)
from alignkit.functional.judge import (
    clamp_cai as clamp_cai,
    judge_probability as judge_probability,
    order_probabilities as order_probabilities,
    preferred as preferred,
)
from alignkit.functional.kl import (
    KL_ESTIMATORS as KL_ESTIMATORS,
    adaptive_kl as adaptive_kl,
    kl_k1 as kl_k1,
    kl_k2 as kl_k2,
    kl_k3 as kl_k3,
)
from alignkit.functional.policy_gradient import (
    cispo_policy_loss as cispo_policy_loss,
    clipped as clipped,
    importance_weights as importance_weights,
    ppo_policy_loss as ppo_policy_loss,
    ppo_value_loss as ppo_value_loss,
    ratio as ratio,
    sequence_log_ratio as sequence_log_ratio,
    value_clipped as value_clipped,
)
from alignkit.functional.preference import (
    cpl_loss as cpl_loss,
    hinge_loss as hinge_loss,
    implicit_reward as implicit_reward,
    instruction_contrast as instruction_contrast,
    ipo_loss as ipo_loss,
    kto_loss as kto_loss,
    kto_reference_point as kto_reference_point,
    log_odds as log_odds,
    preference_loss as preference_loss,
    robust_loss as robust_loss,
    segment_advantage as segment_advantage,
)
from alignkit.functional.reductions import (
    last_index as last_index,
    masked_mean as masked_mean,
    masked_sum as masked_sum,
    masked_whiten as masked_whiten,
    mean_tokens as mean_tokens,
    sum_present as sum_present,
    sum_tokens as sum_tokens,
    whiten as whiten,
)
from alignkit.functional.reward_model import (
    LLAMA2_LABELS as LLAMA2_LABELS,
    LLAMA2_MARGINS as LLAMA2_MARGINS,
    centering_loss as centering_loss,
    kwise_weights as kwise_weights,
    llama2_combine as llama2_combine,
    llama2_margin as llama2_margin,
    llama2_select as llama2_select,
    ordinal_loss as ordinal_loss,
    ordinal_probabilities as ordinal_probabilities,
    pairwise_loss as pairwise_loss,
    reward_normalizer as reward_normalizer,
    right_order as right_order,
)

__all__ = [
    "adaptive_kl",
    "centered_advantages",
    "cispo_policy_loss",
    "clipped",
    "gae",
    "group_has_spread",
    "grpo_advantages",
    "hinge_loss",
    "implicit_reward",
    "ipo_loss",
    "kl_k1",
    "kl_k3",
    "masked_mean",
    "masked_whiten",
    "maxrl_advantages",
    "mean_tokens",
    "nearly_equal",
    "overlong_penalty",
    "ppo_policy_loss",
    "ppo_value_loss",
    "preference_loss",
    "preferred",
    "ratio",
    "reinforce_returns",
    "rloo_advantages",
    "robust_loss",
    "sequence_log_ratio",
    "shape_rewards",
    "sum_tokens",
    "value_clipped",
]
