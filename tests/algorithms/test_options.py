"""Options of algorithms and filters: with those that change a loss the rules of algorithms are kept,
and those that make no sense are refused.
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from alignkit.host.plugins import plugins
from alignkit.testing import check_algorithm

ALLOWED = yaml.safe_load("""
grpo:
- {scale_by_std: false, aggregation: constant_length, max_tokens: 20}
- {aggregation: token_mean, clip_range_high: 0.28, kl_coefficient: 0.0}
- {max_tokens: 30, overlong_cache: 20}
- {ratio: sequence, clip_range: 0.0003, clip_range_high: 0.0004}
- {policy_loss: cispo, clip_range_high: 0.3, entropy_coefficient: 0.1}
ppo:
- {}
- {aggregation: sequence_mean, kl_target: 3.0, entropy_coefficient: 0.1, dual_clip: 3.0}
rloo: [{}]
reinforce_pp:
- {group_baseline: true, aggregation: sequence_mean}
- {whiten_advantages: false, clip_range_high: 0.3}
distillation:
- {}
- context: [{role: user, content: 2 + 2}, {role: assistant, content: "4"}]
online_dpo:
- {}
- {pairs: all, labels: soft, label_smoothing: 0.1}
- {pairs: all, labels: bradley_terry, loss: ipo}
rest:
- {}
- {scale: absolute, thresholds: [0.0]}
expert_iteration: [{max_per_prompt: 1}]
rejection_sampling: [{pool: batch}]
dpo:
- {loss: {sigmoid: 0.8, ipo: 0.2}, nll_coefficient: 0.3}
- {loss: {robust: 1, sigmoid_norm: 2, ipo_norm: 1}, label_smoothing: 0.1}
- {loss: hinge}
simpo: [{nll_coefficient: 0.5}]
orpo: [{}]
cpo: [{}]
kto: [{desirable_weight: 1.3}]
cpl:
- {}
- {reference: true, gamma: 0.9, nll_coefficient: 0.1}
hir:
- {thresholds: [0.25], label_smoothing: 0.2}
- {thresholds: [0, 1], instructions: [a, b, c]}
hir_offline: [{}]
reward_regression: [{}]
reward_ordinal: [{}, {threshold_rate: 0.5}]
""")
REFUSED = yaml.safe_load("""
algorithm:
  grpo:
  - [{aggregation: constant_length}, need max_tokens]
  - [{overlong_cache: 4}, need max_tokens]
  - [{max_tokens: 4}, only applies]
  - [{overlong_cache: 4, max_tokens: 3}, above max_tokens 3]
  - [{ratio: sequence, aggregation: token_mean}, sequence_mean]
  - [{policy_loss: cispo}, clip_range_high]
  - [{policy_loss: cispo, clip_range_high: 4, clip_range: 0.2}, no lower bound]
  - [{policy_loss: cispo, clip_range_high: 4, ratio: sequence}, "ratio: token"]
  - [{scale_by_mean: true, scale_by_std: true}, by the deviation or by the mean]
  ppo:
  - [{kl_coefficient: 0.0, kl_target: 3.0}, kl_coefficient must be above 0]
  - [{kl_horizon: 9.0}, kl_horizon only applies]
  - [{group_baseline: true, center_scores: true}, leave center_scores out]
  rejection_sampling: [[{pool: batch, replay_ratio: 0.5}, replays nothing]]
  rest:
  - [{thresholds: [0.5, 0.5]}, increase]
  - [{thresholds: [0.1, 0.5, 1.5]}, quantiles]
  - [{thresholds: [0.5, 1.0]}, quantiles]
  - [{thresholds: [-0.1, 0.5]}, quantiles]
  - [{thresholds: [0.5], lr_decay: 0.5}, several]
  - [{thresholds: []}, at least 1 item]
  dpo:
  - [{loss: ipo, label_smoothing: 0.1}, "robust, sigmoid, sigmoid_norm"]
  - [{loss: robust}, label_smoothing]
  - [{loss: {robust: 1, sigmoid: 1}}, label_smoothing]
  - [{loss: {}}, at least 1]
  - [{loss: {sigmoid: 0}}, greater than 0]
  - [{loss: {exo: 1.0}}, "'sigmoid'"]
  hir:
  - [{thresholds: [0.0, 1.0]}, 2 instructions need 1 threshold]
  - [{instructions: [a, b, c]}, "3 instructions need 2 thresholds, not 1"]
  - [{instructions: [a], thresholds: []}, at least 2]
  - [{instructions: [a, b, c], thresholds: [1.0, 0.0]}, increase]
  - [{instructions: [a, b, c], thresholds: [1.0, 1.0]}, increase]
  - [{instructions: [a, a]}, differ]
  hir_offline: [[{label_smoothing: 0.1}, contrast]]
  distillation:
  - [{context: [{role: tool, content: "4"}]}, context]
  - [{context: [{role: user}]}, context]
filter:
  reward_range:
  - [{}, "set low, high, or both"]
  - [{low: 1, high: 0}, is above high]
reward:
  llama2:
  - [{helpful: a, safety: b, threshold: -0.1}, threshold]
  - [{helpful: a, safety: b, threshold: 1.0}, threshold]
""")


@pytest.mark.silent_bug(
    "losses: masks",
    "Advantages are passed where the loss expects the mask.",
    "Masked tokens change no gradient.",
    "verl-project/verl#2506",
)
@pytest.mark.silent_bug(
    "metrics: padding",
    "KL, entropy and values are averaged over padding.",
    "Padding changes no metric.",
    "huggingface/trl#6809",
)
@pytest.mark.parametrize("name", ALLOWED)
def test_it_keeps_the_rules_of_algorithms(name: str) -> None:
    for options in ALLOWED[name]:
        check_algorithm(plugins().get("algorithm", name).implementation, options)


@pytest.mark.parametrize(("kind", "name"), [(kind, x) for kind in REFUSED for x in REFUSED[kind]])
def test_options_that_make_no_sense_are_refused(kind: str, name: str) -> None:
    plugin: Any = plugins().get(kind, name).implementation
    for options, named in REFUSED[kind][name]:
        with pytest.raises(ValidationError, match=named):
            plugin.Options(**options)
