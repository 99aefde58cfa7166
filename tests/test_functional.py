"""Beyond the known answers: garbage under masks, extreme values, half precision, errors and edge
shapes.
"""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from alignkit import Group, Pair, Response
from alignkit import functional as F
from alignkit.data.group import ranking_pairs, resolved_pairs
from alignkit.functional.kl import entropy_of
from alignkit.kernels.lm_head import HeadSpec


def test_half_precision_is_widened() -> None:
    logits = torch.zeros(2, 3, dtype=torch.bfloat16)
    assert F.masked_mean(logits, logits > 0).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_entropy_with_forbidden_tokens(dtype: torch.dtype) -> None:
    logits = torch.tensor(
        [[0.0, 0.0, -math.inf], [700.0, -700.0, 0.0]], dtype=dtype, requires_grad=True
    )
    entropy = entropy_of(torch.log_softmax(logits, -1))
    torch.testing.assert_close(entropy, torch.tensor([math.log(2), 0.0], dtype=dtype))
    (gradient,) = torch.autograd.grad(entropy.sum(), logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


GARBAGE = [1e30, -1e30, math.inf, -math.inf, math.nan]


@pytest.mark.silent_bug(
    "advantages: whitening",
    "The mean includes padding, and the variance does not.",
    "Both leave it out.",
    "NovaSky-AI/SkyRL#1305",
)
@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_garbage_leaves_no_trace(garbage: float, dtype: torch.dtype) -> None:
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    clean = torch.tensor([[-0.5, -1.0, 0.0], [0.0, 0.0, 0.0]], dtype=dtype)
    dirty = torch.where(mask.bool(), clean, garbage)

    def losses(x: Tensor, other: Tensor) -> list[Tensor]:
        return [
            F.ppo_policy_loss(x, 0.9 * other, other + 1.0, 0.2, 0.2, 3.0, mask=mask).sum(),
            F.cispo_policy_loss(x, 0.9 * other, other + 1.0, 0.2, mask=mask).sum(),
            F.ppo_value_loss(x, 0.9 * other, -other, 0.2, mask=mask).sum(),
            *(estimator(x, 2 * other, mask).sum() for estimator in F.KL_ESTIMATORS.values()),
            F.masked_mean(x, mask),
            F.mean_tokens(x, mask).sum(),
            F.sequence_log_ratio(x, 2 * other, mask).sum(),
            F.segment_advantage(x, mask, 0.1, 0.9).sum(),
        ]

    for number, (expected, found) in enumerate(
        zip(*gradients_of(losses, clean, dirty), strict=True)
    ):
        torch.testing.assert_close(found, expected, msg=lambda text, n=number: f"loss {n}: {text}")
    scores = torch.tensor([1.0, garbage], dtype=dtype)
    expected, found = (
        [
            F.shape_rewards(scores, x, 2 * x, mask, 0.1),
            F.masked_whiten(x, mask),
            *F.gae(x, x, mask, 1.0, 0.9),
            F.value_clipped(x, 0.9 * x, x, 0.01, mask=mask),
        ]
        for x in (clean, dirty)
    )
    torch.testing.assert_close(found, expected)
    assert all(x.isfinite().all() for x in found)


def gradients_of(losses, *inputs: Tensor) -> list[list[Tensor]]:  # type: ignore[no-untyped-def]
    rows = []
    for values in inputs:
        x = values.clone().requires_grad_()
        found = losses(x, values)
        rows.append(
            [
                y
                for loss in found
                for y in (loss.detach(), torch.autograd.grad(loss, x, retain_graph=True)[0])
            ]
        )
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [100.0, 1000.0])
def test_hopelessly_different_policies_stay_finite(gap: float, dtype: torch.dtype) -> None:
    logprobs = torch.tensor([[0.0, -gap, 0.0]], dtype=dtype, requires_grad=True)
    old = torch.tensor([[-gap, 0.0, -gap]], dtype=dtype)
    advantages = torch.tensor([[1.0, 1.0, 0.0]], dtype=dtype)
    loss = F.ppo_policy_loss(logprobs, old, advantages, 0.2, 0.2).sum()
    torch.testing.assert_close(loss.detach(), torch.tensor(-1.2, dtype=dtype))
    assert torch.autograd.grad(loss, logprobs)[0].abs().max() < 1e-30
    assert F.kl_k3(old, logprobs.detach()).isfinite().all()
    assert float(F.ratio(old.new_tensor(79.0), old.new_zeros(()))) == pytest.approx(math.exp(79))


def test_extreme_preferences_stay_finite() -> None:
    gap = torch.tensor([-200.0, 200.0])
    for losses in (
        F.pairwise_loss(gap, torch.zeros(2)),
        F.preference_loss(gap),
        F.cpl_loss(gap, torch.zeros(2)),
    ):
        torch.testing.assert_close(losses, torch.tensor([200.0, 0.0]))
    z = torch.tensor([-1e4, 1e4, 0.0], requires_grad=True)
    for losses in (
        F.preference_loss(z, 0.1),
        F.robust_loss(z, 0.1),
        F.hinge_loss(z),
        F.pairwise_loss(z, -z, p=0.5),
    ):
        assert losses.isfinite().all()
        assert torch.autograd.grad(losses.sum(), z)[0].isfinite().all()
    certain = torch.tensor([0.0, -1e-9, -1e4], requires_grad=True)
    assert F.log_odds(certain).isfinite().all()
    assert torch.autograd.grad(F.log_odds(certain).sum(), certain)[0].isfinite().all()


def test_a_combined_score_stays_within_the_logits_of_eps() -> None:
    no = torch.tensor([False, False])
    found, _ = F.llama2_combine(torch.tensor([50.0, -50.0]), torch.tensor([9.0, 9.0]), no, eps=0.1)
    assert found.tolist() == pytest.approx([math.log(9), -math.log(9)])
    assert F.llama2_margin("unsure") == 0


def test_the_other_instructions_share_the_smoothing() -> None:
    table = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, -0.1, -1.0]])
    losses = -torch.log_softmax(table, dim=1)
    for own in ([0, 1], [2, 0]):
        found = F.instruction_contrast(table, torch.tensor(own), 0.3)
        for row, right in enumerate(own):
            others = [float(losses[row, k]) for k in range(3) if k != right]
            assert float(found[row]) == pytest.approx(
                0.7 * float(losses[row, right]) + 0.3 * sum(others) / 2
            )
    assert F.instruction_contrast(table[:1, :1], label_smoothing=0.3).tolist() == [0.0]


def test_log_odds_are_exact_on_both_sides() -> None:
    for x in (-1e-6, -1e-3, -0.1, -0.6931, -0.7, -3.0, -20.0, -90.0):
        wide = torch.tensor([x], dtype=torch.float32).double()
        wanted = float(wide - (-wide.expm1()).log())
        assert float(F.log_odds(wide.float())[0]) == pytest.approx(wanted, rel=1e-6, abs=1e-6)


@pytest.mark.silent_bug(
    "advantages: GAE",
    "Values of tool tokens enter the returns.",
    "GAE goes from one token of the policy to the next.",
    "verl-project/verl#2337",
)
def test_gae_ignores_how_a_row_is_padded() -> None:
    rewards, values = torch.randn(2, 6, dtype=torch.float64).unbind()
    spread = [0, 2, 3, 7, 8, 10]
    mask = torch.zeros(1, 12)
    mask[0, spread] = 1
    sparse = torch.full((2, 12), 1e30, dtype=torch.float64)
    sparse[:, spread] = torch.stack([rewards, values])
    ones, end = torch.ones(1, 6), torch.tensor([0.5], dtype=torch.float64)
    dense = F.gae(rewards[None], values[None], ones, 0.9, 0.8, bootstrap=end)
    found = F.gae(sparse[:1], sparse[1:], mask, 0.9, 0.8, bootstrap=end)
    torch.testing.assert_close(tuple(x[:, spread] for x in found), dense)
    assert not any(bool(x[mask == 0].any()) for x in found)


def test_without_a_range_no_value_is_clipped() -> None:
    far = torch.tensor([[9.0]])
    assert not F.value_clipped(far, 0 * far, far, None).any()


def test_whitening_of_equal_values_is_exactly_zero_in_float32() -> None:
    white = F.whiten(torch.full((1000,), 0.1))
    assert not white.any()
    assert not F.whiten(torch.tensor([3.0])).any()


def test_a_response_without_a_rank_forms_no_pair() -> None:
    """0 is a rank; indices count all responses; a group's own pairs take precedence over its
    ranks.
    """
    ranks = [None, 0, 2.5, None, 2.5, 1]
    pairs = [(1, 2), (1, 4), (1, 5), (5, 2), (5, 4)]
    assert ranking_pairs(ranks) == pairs and ranking_pairs([None, 1]) == []
    group = Group((), tuple(Response(rank=rank) for rank in ranks))
    assert resolved_pairs(group) == tuple(Pair(i, j) for i, j in pairs)
    assert resolved_pairs(replace(group, pairs=(Pair(4, 1, p=0.7),))) == (Pair(4, 1, p=0.7),)


@pytest.mark.silent_bug(
    "advantages: groups",
    "Mean and deviation are those of the first rollout.",
    "They are those of the whole group, in any order.",
    "ServiceNow/PipelineRL#54",
)
def test_group_advantages_follow_ids_not_order() -> None:
    rewards, group = torch.tensor([1.0, 5.0, 3.0, 7.0, 2.0]), torch.tensor([8, 1, 8, 1, 4])
    assert F.centered_advantages(rewards, group).tolist() == [-1.0, -1.0, 1.0, 1.0, 0.0]
    assert F.rloo_advantages(rewards, group).tolist() == [-2.0, -2.0, 2.0, 2.0, 0.0]
    assert F.group_has_spread(rewards, group).tolist() == [True, True, True, True, False]


@pytest.mark.silent_bug(
    "evaluation: best of n",
    "Prompts are counted as samples, and one greedy answer per prompt inflates pass@k.",
    "Each prompt has its own pass@k.",
    "paiml/aprender#2118",
)
def test_best_of_n_of_right_and_wrong_is_pass_at_k() -> None:
    """Draws without replacement (Chen et al. 2021, section 2.1): of four samples with one right
    one, pass@4 is 1.
    """
    right = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]])
    for k in range(1, 5):
        known = [1 - math.comb(4 - count, k) / math.comb(4, k) for count in (1, 2)]
        assert F.expected_best_of_n(right, k).tolist() == pytest.approx(known)


def test_equal_rewards_have_zero_advantages() -> None:
    rewards, group = torch.full((7,), 0.1), torch.zeros(7)
    assert not F.grpo_advantages(rewards, group, eps=0.0).nan_to_num(0.0).any()
    assert not F.grpo_advantages(rewards, group, eps=1e-9).any()


@pytest.mark.silent_bug(
    "metrics: clip fraction",
    "Tokens outside the range count as clipped although they have a gradient.",
    "A token counts if and only if clipping removes its gradient.",
    "huggingface/trl#3289",
)
@pytest.mark.parametrize("garbage", GARBAGE)
def test_clipped_tokens_are_marked(garbage: float) -> None:
    """Above the range if A > 0, below it if A < 0: exactly where the gradient of the loss is 0."""
    mask = torch.tensor([[1, 1, 1, 1, 1, 0]])
    old = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, garbage]])
    new = torch.tensor([[0.5, 0.5, -0.5, -0.5, 0.0, 0.0]], requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0, -garbage]])
    clipped = F.clipped(new, old, advantages, 0.2, 0.3, mask=mask)
    assert clipped.tolist() == [[1, 0, 0, 1, 0, 0]] and not clipped.requires_grad
    # With it, a bad token that has become much likelier has no gradient, either
    for dual in (None, 1.5):
        clipped = F.clipped(new, old, advantages, 0.2, 0.3, dual, mask=mask)
        loss = F.ppo_policy_loss(new, old, advantages, 0.2, 0.3, dual, mask=mask).sum()
        (gradient,) = torch.autograd.grad(loss, new)
        assert torch.equal((gradient == 0) & mask.bool(), clipped.bool())
    assert clipped.tolist() == [[1, 1, 0, 1, 0, 0]]


@pytest.mark.silent_bug(
    "evaluation: best of n",
    "With fewer than k samples, pass@k is 1.",
    "It is an error.",
    "nuprl/MultiPL-E#40",
)
@pytest.mark.silent_bug(
    "sampling: temperature",
    "Logits are divided by a temperature of 0.",
    "It is an error.",
    "THUDM/slime#2197",
)
@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (lambda x: F.gae(x, x[:, :1], x, 1.0, 1.0), "values"),
        (lambda x: F.gae(x, x, x, 1.0, 1.0, bootstrap=x[:1, 0]), "bootstrap"),
        (lambda x: F.ppo_policy_loss(x, x, x[:, 0], 0.2, 0.2), "advantages"),
        (lambda x: F.shape_rewards(x, x, x, x, 0.1), "mask_rows"),
        (lambda x: F.pairwise_loss(x[:, 0], x), "worse"),
        (lambda x: F.masked_mean(x, x[0]), "mask"),
        (lambda x: HeadSpec(x, temperature=0.0), "temperature"),
        (lambda x: F.shape_rewards(x[:, 0], x, x, x, 0.1, estimator="k4"), "k4"),
        (lambda x: F.missing_eos_penalty(x[0], x[0] > 0, penalty=1.0, replace=-1.0), "both"),
        (lambda x: F.robust_loss(x, 0.5), "0.5"),
        (lambda x: F.llama2_margin("much better"), "much better"),
        (lambda x: F.llama2_margin("better", "huge"), "huge"),
        (lambda x: F.llama2_margin(-1), "-1"),
        (lambda x: F.expected_best_of_n(x, 4), "best of 4"),
        (lambda x: F.adaptive_kl(0.1, 1.0, 0.0, 100, 1), "target"),
        (lambda x: F.reward_normalizer(x[:0]), "demonstration"),
        (lambda x: F.right_order(x, x, "strictly"), "strictly"),
    ],
)
def test_errors_name_what_is_wrong(mistake, named: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=named):
        mistake(torch.ones(2, 3))


# --- GRPO's variants


@pytest.mark.silent_bug(
    "masks: importance weights",
    "A fill value of 1 gives masked tokens a weight of 1/e.",
    "A masked token weighs 1, whatever stands there, and does not count.",
    "yaof20/Flash-RL#19",
)
def test_importance_weights_are_ratios_without_a_gradient() -> None:
    old = torch.tensor([[-1.0, -1.0, math.nan]], dtype=torch.float64, requires_grad=True)
    sampler = torch.tensor([[-1.5, -3.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0]])
    weights, ratios = F.importance_weights(old, sampler, mask, 2.0)
    torch.testing.assert_close(weights.tolist(), [[math.exp(0.5), 2.0, 1.0]])
    torch.testing.assert_close(ratios.tolist(), [[math.exp(0.5), math.exp(2), 1.0]])
    assert not weights.requires_grad and not ratios.requires_grad
    for one in F.importance_weights(old, sampler, mask, sequence=True):
        torch.testing.assert_close(one.tolist(), [math.exp(2.5)])
    assert F.importance_weights(old, sampler, mask, 1.5, (0.5, 2.0))[0].tolist() == [
        [1.5, 0.0, 1.0]
    ]


@pytest.mark.parametrize("k", [2, 4])
def test_maxrl_climbs_the_truncated_log_likelihood(k: int) -> None:
    """The mean of (1/K) sum A_i grad log pi(y_i) over all groups of K is the gradient of log p, cut
    at order K - 1:

    log p = -sum over j of (1 - p)^j / j (Tajwar et al. 2026). Without its baseline the estimator is
    of order K; the baseline is subtracted only if a response is right, which takes off the last
    term.
    """
    logits = torch.DoubleTensor([0.3, -0.5, 1.0]).requires_grad_(True)
    right = torch.DoubleTensor([1.0, 0.0, 0.0])
    logp = logits.log_softmax(0)
    p = (logp.exp() * right).sum()
    wanted = torch.autograd.grad(
        -sum((1 - p) ** j / j for j in range(1, k)), logits, retain_graph=True
    )[0]
    found = torch.zeros_like(logits)
    for group in product(range(3), repeat=k):
        chosen = logp[list(group)]
        advantages = F.maxrl_advantages(right[list(group)], torch.zeros(k))
        found += (
            chosen.sum().exp().detach()
            * torch.autograd.grad((advantages * chosen).mean(), logits, retain_graph=True)[0]
        )
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("computes", "learned"),
    [
        (lambda x, y, z: F.ppo_policy_loss(x, y, z, 0.2, 0.2), True),
        (lambda x, y, z: F.cispo_policy_loss(x, y, z, 0.2), True),
        (lambda x, y, z: F.ppo_value_loss(x, y, z, 0.2), True),
        (lambda x, y, z: F.kto_reference_point(x[0]), False),
        (lambda x, y, z: F.shape_rewards(x[:, 0], y, z, torch.ones(2, 3), 0.1), False),
        (lambda x, y, z: F.gae(x, y, torch.ones(2, 3), 1.0, 1.0)[0], False),
        (lambda x, y, z: F.gae(x, y, torch.ones(2, 3), 1.0, 1.0)[1], False),
        (lambda x, y, z: F.masked_whiten(x, torch.ones(2, 3)), False),
    ],
)
def test_constants_get_no_gradient(computes, learned: bool) -> None:  # type: ignore[no-untyped-def]
    columns = [torch.randn(2, 3, requires_grad=True) for _ in range(3)]
    found = computes(*columns)
    assert found.requires_grad == learned
    if learned:
        moved = torch.autograd.grad(found.sum(), columns, allow_unused=True)
        assert [each is not None for each in moved] == [True, False, False]


@pytest.mark.parametrize("p", [1.0, 0.7, torch.tensor([1.0, 0.2])])
def test_a_pair_with_a_margin_and_a_soft_label(p: float | Tensor) -> None:
    """-p log sigma(d - m) - (1 - p) log sigma(-d - m), with one p for all and one for each pair."""
    better, worse = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.25])
    d, m = better - worse, torch.tensor([0.4, 1.5])
    wanted = p * (1 + (m - d).exp()).log() + (1 - p) * (1 + (m + d).exp()).log()
    torch.testing.assert_close(F.pairwise_loss(better, worse, m, p), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_tails_of_an_ordered_logit_stay_finite(dtype: torch.dtype) -> None:
    scores = torch.tensor([80.0, -80.0, 0.0], dtype=dtype, requires_grad=True)
    thresholds = torch.tensor([-1.0, 1.0])
    losses = F.ordinal_loss(scores, torch.tensor([1, 1, 0]), thresholds)
    gradient = torch.autograd.grad(losses.sum(), scores)[0]
    sigma = [1 / (1 + math.exp(x)) for x in (1, -1)]  # of -1 and 1
    tail = 79 - math.log(1 - math.exp(-2.0))
    assert losses.tolist() == pytest.approx([tail, tail, math.log(1 + math.e)], rel=1e-5)
    assert gradient.tolist() == pytest.approx([1.0, -1.0, sigma[1]], rel=1e-5)
    p = F.ordinal_probabilities(torch.zeros(1, dtype=dtype), thresholds)[0]
    assert p.tolist() == pytest.approx([sigma[0], sigma[1] - sigma[0], sigma[0]], rel=1e-5)
