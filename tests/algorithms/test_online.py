"""Online and self-training methods: the plugins themselves against golden numbers, by hand, and what
a run says that learned nothing.

tests/net/test_optimum.py tests what they converge to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from alignkit import Algorithm, Batch, Group, Outputs, Response, Skip
from alignkit_plugins.algorithms.dpo import DPO, OnlineDPO
from alignkit_plugins.algorithms.filters import Spread
from alignkit_plugins.algorithms.grpo import GRPO, RLOO, ReinforcePP
from alignkit_plugins.algorithms.ppo import PPO
from alignkit_plugins.algorithms.rejection_sampling import ExpertIteration, RejectionSampling, ReST
from tests.by_hand import (
    Looking,
    alike,
    asked,
    averaged,
    batch,
    close,
    double,
    golden,
    gradient,
    loss_of,
    new,
    pairs_of,
    random_batch,
    reported,
    scored,
)
from tests.rows import Said, read_rows, run, write_recipe


def rollouts(
    rewards: Any, group: Any, mask: Any | None = None, old: Any = 0.0, reference: Any = 0.0
) -> Batch:
    mask = torch.ones(len(rewards), 1) if mask is None else torch.as_tensor(mask)
    old, reference = (double(x).expand(mask.shape) for x in (old, reference))
    columns = {"old_logprobs": old, "reference_logprobs": reference}
    return batch(mask, group=group, rewards=double(rewards), **columns)


def advantages_of(algorithm: Algorithm, given: Batch) -> Tensor:
    """An iteration that is skipped has no advantages: zeros."""
    signal = algorithm.signal(given)
    return torch.zeros_like(given.rewards) if isinstance(signal, Skip) else signal["advantages"]


def places(groups: Sequence[Group]) -> list[tuple[int, int]]:
    """(prompt, sample) of all responses of these groups."""
    texts = [response.text.split(".") for group in groups for response in group.responses]
    return [(int(p), int(k)) for p, k in texts]


# Advantages, against tests/golden/group_advantage.json


@pytest.mark.parametrize("case", golden("group_advantage", "rewards"))
def test_group_advantages(case: Mapping[str, Any]) -> None:
    table, expected = double(case["inputs"]["rewards"]), case["expected"]
    given = rollouts(table.flatten(), torch.arange(len(table)).repeat_interleave(table.shape[1]))
    centered, groups = new(GRPO, scale_by_std=False), scored(table.tolist())
    for name, algorithm in (
        ("grpo_ddof1_eps1e-4", new(GRPO)),
        ("dr_grpo", centered),
        ("rloo", new(RLOO, kl_coefficient=0.0)),
        ("reinforce_pp_baseline_ddof1", new(ReinforcePP, group_baseline=True)),
    ):
        close(advantages_of(algorithm, given).view_as(table), expected[name])
        assert [algorithm.keep_group(each) for each in groups] == [table.shape[1] > 1] * len(table)
    keeps = expected["dapo_keep_group"]
    assert centered.metrics["groups_without_spread"] == keeps.count(False)
    assert new(Spread).keep(groups) == keeps


@pytest.mark.silent_bug(
    "sampling: filters",
    "Dynamic sampling keeps groups of wrong answers because a length penalty sets them apart.",
    "The filter sees the reward before the penalty.",
    "NVIDIA-NeMo/RL#2431",
)
def test_an_overlong_penalty_keeps_no_group() -> None:
    """Answers of unequal lengths that are equally good: only the penalty would set them apart."""
    responses = [Response("x" * n, tokens=(5,) * n, scores={"reward": 0.0}) for n in (1, 4)]
    group = Group(asked("?"), tuple(responses))
    assert new(Spread).keep([group]) == [False]


@pytest.mark.parametrize("case", golden("group_advantage", "kl_k1"))
def test_returns_of_tokens(case: Mapping[str, Any]) -> None:
    inputs, expected = case["inputs"], case["expected"]
    scores, mask = inputs["scores"], inputs["mask"]
    given = rollouts(scores, torch.arange(len(scores)), mask, old=inputs["kl_k1"])
    for name, whiten in (("returns", False), ("advantages_ddof1", True)):
        beta = case["params"]["beta"]
        algorithm = new(ReinforcePP, kl_coefficient=beta, whiten_advantages=whiten)
        close(algorithm.signal(given)["advantages"][given.mask], double(expected[name])[given.mask])
        close(algorithm.metrics["return"], double(expected["returns"])[given.mask].mean())


@pytest.mark.parametrize("case", golden("group_advantage", "length"))
def test_overlong_penalty(case: Mapping[str, Any]) -> None:
    lengths, penalty = case["inputs"]["length"], double(case["expected"]["penalty"])
    rewards = torch.arange(len(lengths)) % 3
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    limits = {"max_tokens": case["params"]["l_max"], "overlong_cache": case["params"]["l_cache"]}
    algorithm = new(GRPO, scale_by_std=False, **limits)
    found = algorithm.signal(rollouts(rewards, [0] * len(lengths), mask))["advantages"]
    close(found, rewards + penalty - (rewards + penalty).mean())
    close(algorithm.metrics["overlong_penalty"], penalty.mean(), rtol=1e-6)
    assert algorithm.needs.max_new_tokens == limits["max_tokens"]
    # It sets equal rewards apart
    equal = new(GRPO, **limits).signal(rollouts(rewards * 0, [0] * len(lengths), mask))
    assert isinstance(equal, Skip) == bool((penalty == penalty[0]).all())


def test_rloo_prices_the_kl_of_a_whole_response() -> None:
    """Returns of 1 - 0.1 * 0.75 and 2 - 0.1."""
    algorithm = new(RLOO, kl_coefficient=0.1)
    given = rollouts([1.0, 2.0], [0, 0], [[1, 1], [1, 0]], [[0.5, 0.25], [1.0, 9.0]])
    close(advantages_of(algorithm, given), [-0.975, 0.975])
    assert algorithm.metrics == pytest.approx({"return": 1.4125, "advantage_size": 0.975})


# Losses, against tests/golden/group_policy_loss.json

VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": {"aggregation": "constant_length"},
    "dapo": {"aggregation": "token_mean"},
    "gspo": {"ratio": "sequence"},
    "gspo_wide": {"ratio": "sequence"},
}


@pytest.mark.silent_bug(
    "losses: length",
    "The loss is averaged over samples where tokens are meant.",
    "Each way of averaging has its golden loss and gradient.",
    "PrimeIntellect-ai/prime-rl#102",
)
@pytest.mark.silent_bug(
    "losses: KL",
    "GRPO uses k1 as a loss, whose gradient is 0 on average.",
    "GRPO uses k3, as in its paper; k1 is only used in rewards.",
    "NVIDIA-NeMo/RL#2506",
)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", golden("group_policy_loss", "logprob"))
def test_group_policy_loss(case: Mapping[str, Any], variant: str) -> None:
    inputs, expected = case["inputs"], case["expected"][variant]
    p = expected["params"]
    algorithm = new(
        GRPO,
        clip_range=p["clip_low"],
        clip_range_high=p["clip_high"],
        kl_coefficient=p["beta_kl_k3"],
        max_tokens=p["max_completion_length"],
        **VARIANTS[variant],
    )
    old, reference = (double(inputs[f"{x}_logprob"]) for x in ("old", "ref"))
    given = batch(inputs["mask"], old_logprobs=old, reference_logprobs=reference)
    given.signals = {"advantages": double(inputs["advantages"])}
    logprobs = double(inputs["logprob"]).requires_grad_()
    loss = loss_of(algorithm, given, logprobs=logprobs)
    close(loss, expected["loss"])
    close(gradient(loss, logprobs), expected["grad_logprob"])
    found = reported(algorithm, given, Outputs(logprobs=logprobs))
    close(found["clip_fraction"], expected["clip_fraction"])


def test_a_constant_length_counts_empty_responses() -> None:
    """Dr. GRPO divides by all responses times max_tokens, in the KL as in the policy's term."""
    old = double([[-1.0, -1.0], [0.0, 0.0]])
    given = batch([[1, 1], [0, 0]], old_logprobs=old, reference_logprobs=old + 0.5)
    given.signals = {"advantages": double([3.0, 1.0])}
    algorithm = new(GRPO, aggregation="constant_length", max_tokens=4, kl_coefficient=0.2)
    wanted = (-3.0 * 2 + 0.2 * 2 * (math.exp(0.5) - 1 - 0.5)) / (2 * 4)
    close(loss_of(algorithm, given, logprobs=old), wanted)
    assert algorithm.needs.max_new_tokens is None


# The clipped update, against tests/golden/ppo_policy_loss.json and ppo_value_loss.json


def ppo_batch(inputs: Mapping[str, Any]) -> tuple[Batch, Outputs]:
    """A golden batch of policy or values; what the case does not have is 0."""
    zero = torch.zeros(torch.tensor(inputs["mask"]).shape, dtype=torch.float64)
    old, values, advantages, returns = (
        double(inputs.get(name, zero))
        for name in ("old_logprob", "old_values", "advantages", "returns")
    )
    given = batch(inputs["mask"], old_logprobs=old, old_values=values)
    given.signals = {"advantages": advantages, "returns": returns}
    moved = [double(inputs.get(name, zero)).requires_grad_() for name in ("logprob", "values")]
    return given, Outputs(logprobs=moved[0], values=moved[1], entropy=zero)


@pytest.mark.parametrize("cls", [PPO, ReinforcePP])
@pytest.mark.parametrize("case", golden("ppo_policy_loss", "logprob"))
def test_the_clipped_update(case: Mapping[str, Any], cls: type[Algorithm]) -> None:
    expected, p = case["expected"], case["params"]
    options = {"clip_range": p["clip_low"], "clip_range_high": p["clip_high"]}
    if cls is PPO:
        options |= {"dual_clip": p["dual_clip"], "value_coefficient": 0.0}
    elif p["dual_clip"] is not None:
        return
    given, out = ppo_batch(case["inputs"])
    for ours, theirs in (("token_mean", "token_mean"), ("sequence_mean", "seq_mean_token_mean")):
        algorithm = new(cls, aggregation=ours, **options)
        loss = averaged(algorithm, [(given, out)])
        # PPO's weights are float32
        near = {"rtol": 1e-6, "atol": 1e-7} if ours == "sequence_mean" else {}
        close(loss, expected[theirs]["loss"], **near)
        close(gradient(loss, out.logprobs), expected[theirs]["grad_logprob"], **near)
        found = reported(algorithm, given, out)
        # The golden share knows of no dual clip; all advantages of that case differ from 0
        still = double(expected[theirs]["grad_logprob"])[given.mask] == 0
        active = (
            expected["clip_fraction_active"] if p["dual_clip"] is None else still.double().mean()
        )
        close(found["clip_fraction"], active)
        assert p["dual_clip"] is None or active > expected["clip_fraction_active"]
        close(found["ratio"], expected["mean_ratio"], rtol=1e-6)
        close(found["approx_kl"], expected["approx_kl_k3"], rtol=1e-6)
        assert found.get("value_clip_fraction", 0.0) == 0.0


@pytest.mark.parametrize("case", golden("ppo_value_loss", "values"))
def test_ppo_values(case: Mapping[str, Any]) -> None:
    given, out = ppo_batch(case["inputs"])
    algorithm = new(PPO, value_clip_range=case["params"]["clip_value"], value_coefficient=0.7)
    loss = averaged(algorithm, [(given, out)])
    close(loss, 0.7 * case["expected"]["loss"])
    close(gradient(loss, out.values), 0.7 * double(case["expected"]["grad_values"]))
    found = reported(algorithm, given, out)
    close(found["value_clip_fraction"], case["expected"]["clip_fraction"])
    assert found["clip_fraction"] == 0.0


def test_ratios_of_whole_responses() -> None:
    """RLOO's is a product over tokens, GSPO's its root by the length; the second token of the
    second is no token. The first response is above 1.2, so it has no gradient.
    """
    old = double([[-1.0, -2.0], [-3.0, 9.0]])
    given = batch([[1, 1], [1, 0]], old_logprobs=old, reference_logprobs=old)
    given.signals = {"advantages": double([1.0, -1.0])}
    logprobs = double([[-0.9, -1.7], [-2.9, 0.0]]).requires_grad_()
    moved, second = [0.1, 0.3, 0.1], math.exp(0.1)
    group = new(GRPO, ratio="sequence", kl_coefficient=0.0)
    for algorithm, first in ((new(RLOO), 0.4), (group, 0.2)):
        found = reported(algorithm, given, Outputs(logprobs=logprobs))
        assert found["ratio"] == pytest.approx((math.exp(first) + second) / 2)
        assert found["approx_kl"] == pytest.approx(sum(math.exp(x) - 1 - x for x in moved) / 3)
        assert found["clip_fraction"] == 0.5
        loss = loss_of(algorithm, given, logprobs=logprobs)
        close(loss, (second - 1.2) / 2)
        close(gradient(loss, logprobs), [[0.0, 0.0], [second / 2, 0.0]])


# algorithm, options, rewards of two groups of two, whether the first response is away from the
# reference, whether nothing is learned: a KL with a coefficient is enough to learn from
SKIPPED = yaml.safe_load("""
- [GRPO, {kl_coefficient: 0.1}, [1, 1, 2, 2], false, true]
- [GRPO, {kl_coefficient: 0.0}, [1, 1, 2, 2], true, true]
- [GRPO, {kl_coefficient: 0.1}, [1, 1, 2, 2], true, false]
- [GRPO, {kl_coefficient: 0.0}, [1, 1, 2, 2.5], false, false]
- [RLOO, {kl_coefficient: 0.1}, [1, 1, 2, 2], false, true]
- [RLOO, {kl_coefficient: 0.0}, [1, 1, 2, 2], true, true]
- [RLOO, {kl_coefficient: 0.1}, [1, 1, 2, 2], true, false]
- [RLOO, {kl_coefficient: 0.0}, [1, 1, 2, 2.5], false, false]
- [ReinforcePP, {}, [1, 1, 1, 1], false, true]
- [ReinforcePP, {}, [1, 1, 2, 2], false, false]
- [ReinforcePP, {}, [2, 2, 1, 1], false, false]
- [ReinforcePP, {group_baseline: true}, [1, 1, 2, 2], false, true]
- [ReinforcePP, {}, [1, 1, 1, 1], true, false]
- [ReinforcePP, {kl_coefficient: 0.0, whiten_advantages: false}, [1, 1, 1, 1], true, true]
""")


def test_an_iteration_without_a_signal_is_skipped() -> None:
    for name, options, rewards, away, skipped in SKIPPED:
        old = [[0.5 * away], [0.0], [0.0], [0.0]]
        signal = new(globals()[name], **options).signal(rollouts(rewards, [0, 0, 1, 1], old=old))
        assert isinstance(signal, Skip) == skipped, (name, options, rewards)


# Online DPO


@pytest.mark.parametrize("name", ["sigmoid", "ipo"])
def test_online_dpo_has_the_losses_of_dpo(name: str) -> None:
    given, moved = random_batch(2)
    given.pairs = pairs_of([(0, 1, 1.0), (3, 2, 0.7), (5, 4, 0.9)], given.group_index)
    online, offline = new(OnlineDPO, beta=0.3, loss=name), new(DPO, beta=0.3, loss=name)
    ours, theirs = (loss_of(each, given, logprobs=moved) for each in (online, offline))
    alike(ours, theirs, moved)
    out = Outputs(logprobs=moved)
    assert reported(online, given, out) == pytest.approx(reported(offline, given, out))


def paired(groups: Sequence[Group], seed: int = 0, **options: Any) -> tuple[list[Any], Looking]:
    """(better, worse, p) of every pair, in texts."""
    looking, found = Looking(seed=seed), []
    for group in new(OnlineDPO, **options).select(groups, looking):
        for pair in group.pairs or ():
            better, worse = group.responses[pair.better], group.responses[pair.worse]
            found.append((better.text, worse.text, pair.p))
    return found, looking


def test_the_best_is_paired_with_the_worst() -> None:
    groups = scored([[0.5, 2.0, -1.0, 2.0], [1.0, 1.0, 1.0, 1.0], [3.0, 0.0, 0.0, 1.0], [5.0]])
    found, looking = paired(groups)
    assert found == [("0.1", "0.2", 1.0), ("2.0", "2.1", 1.0)]  # the first of equals
    assert looking.logged == {"pairs": 2, "groups_tied": 2}
    # No others are run
    assert [len(group.responses) for group in new(OnlineDPO).select(groups, Looking())] == [2, 2]


def test_all_pairs_but_ties_and_equal_words() -> None:
    found, looking = paired(scored([[0.5, 2.0, -1.0, 2.0]]), pairs="all")
    names = ", ".join(f"{better} {worse}" for better, worse, _ in found)
    assert names == "0.1 0.0, 0.0 0.2, 0.3 0.0, 0.1 0.2, 0.3 0.2"
    assert looking.logged == {"pairs": 5, "groups_tied": 0}
    first, second, other = (
        Response(text=str(tokens), tokens=(1, tokens), scores={"reward": float(reward)})
        for reward, tokens in enumerate((2, 2, 3))
    )
    groups = [Group((), (first, second, other)), Group((), (first, second))]
    found, looking = paired(groups, pairs="all")
    assert found == [("3", "2", 1.0)] * 2 and looking.logged == {"pairs": 2, "groups_tied": 1}


def test_labels_are_bradley_terry_s() -> None:
    """Soft, or drawn for 2000 groups of each gap; a gap of 1000 overflows nothing."""
    for gap in (0.0001, 0.7, 2.5, 1000.0):
        chance = 1 / (1 + math.exp(-gap))
        (soft,), _ = paired(scored([[0.0, gap]]), labels="soft")
        assert soft == ("0.1", "0.0", pytest.approx(chance))
        groups = scored([[0.0, gap]] * 2000)
        drawn, _ = paired(groups, labels="bradley_terry")
        share = sum(better.endswith(".1") for better, _, _ in drawn) / 2000
        assert abs(share - chance) <= 4 * math.sqrt(chance * (1 - chance) / 2000) + 1e-9
        assert {p for _, _, p in drawn} == {1.0}
        if gap == 0.7:  # of the stage's own random stream
            assert drawn == paired(groups, labels="bradley_terry")[0]
            assert drawn != paired(groups, seed=1, labels="bradley_terry")[0]


# ReST and expert iteration, against tests/golden/rest.json


def rows_of(values: Sequence[Any]) -> list[list[Any]]:
    return [list(values[start : start + 3]) for start in range(0, len(values), 3)]


@pytest.mark.parametrize("case", golden("rest", "rewards"))
def test_rest(case: Mapping[str, Any]) -> None:
    inputs, steps = case["inputs"], case["expected"]["improve_steps"]
    algorithm = new(ReST, thresholds=inputs["thresholds"], scale="absolute", lr_decay=0.4)
    looking = Looking()
    phases = algorithm.select(scored(rows_of(inputs["rewards"])), looking)
    full = [number for number, step in enumerate(steps) if step["selected"]]
    assert looking.logged["empty_steps"] == len(steps) - len(full)
    for number, step in enumerate(steps, 1):
        assert looking.logged[f"threshold/{number}"] == step["threshold"]
        assert looking.logged[f"learned/{number}"] == pytest.approx(step["fraction"])
    for phase, number in zip(phases, full, strict=True):
        chosen = [3 * p + k for p, k in places(phase.groups)]
        assert chosen == steps[number]["selected"]
        assert (phase.lr_scale, phase.epochs) == (pytest.approx(0.4**number), None)
        assert all(group.responses and group.pairs is None for group in phase.groups)
        # The loss, if each response has its golden NLL and length
        lengths = torch.tensor(inputs["n_tokens"])[chosen]
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        logprobs = (-double(inputs["sequence_nll"])[chosen] / lengths)[:, None].expand(mask.shape)
        loss = loss_of(algorithm, batch(mask), logprobs=logprobs)
        close(loss, steps[number]["loss_token_mean_selected"], rtol=1e-6)


@pytest.mark.parametrize("case", golden("rest", "rewards"))
def test_quantiles_of_the_whole_grown_set(case: Mapping[str, Any]) -> None:
    rewards, looking = case["inputs"]["rewards"], Looking()
    wanted = case["expected"]["quantile_thresholds_0_50_90_linear"]
    phases = new(ReST, thresholds=[0.0, 0.5, 0.9]).select(scored(rows_of(rewards)), looking)
    close([looking.logged[f"threshold/{step}"] for step in (1, 2, 3)], wanted, rtol=1e-12)
    kept = [[i for i, reward in enumerate(rewards) if reward > threshold] for threshold in wanted]
    found = [[3 * p + k for p, k in places(phase.groups)] for phase in phases]
    assert found == [some for some in kept if some]


# options, threshold, accepted, learned as PROMPT and SAMPLE, prompts without
ACCEPTED = yaml.safe_load("""
- [{}, 0.3, 6, "00 02 03 20 21 23", 1]  # the mean
- [{threshold: 0.5}, 0.5, 4, "00 02 03 21", 1]
- [{threshold: -0.5}, -0.5, 11, "00 01 02 03 10 11 12 13 20 21 23", 0]
- [{max_per_prompt: 2}, 0.3, 6, "00 02 20 21", 1]
""")


def test_expert_iteration_learns_what_is_accepted() -> None:
    groups = scored([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.5, 0.6, -1.0, 0.5]])
    for options, threshold, accepted, learned, without in ACCEPTED:
        looking = Looking()
        found = places(new(ExpertIteration, **options).select(groups, looking))
        assert " ".join(f"{p}{k}" for p, k in found) == learned
        counts = {"accepted": accepted, "learned": len(found), "prompts_without": without}
        assert looking.logged == pytest.approx({"threshold": threshold, **counts})


def test_equal_rewards_are_not_above_their_mean() -> None:
    for equal in ([1.0] * 4, [0.7] * 3):  # whose mean is rounded to less
        assert new(ExpertIteration).select(scored([equal]), Looking()) == []


def rolled(name: str, *rows: tuple[int, list[float]]) -> list[Group]:
    """Groups (prompt, rewards) whose responses are named NAME, number of the group, sample."""
    groups = []
    for number, (prompt, rewards) in enumerate(rows):
        (group,) = scored([rewards], f"{name}{number} ")
        groups.append(Group(asked(str(prompt)), group.responses, meta={"of": f"{name}{number}"}))
    return groups


def test_a_prompt_twice_and_prompts_that_come_and_go() -> None:
    """Which sample of which iteration, what is marked, and the order: new prompts as they came,
    then replayed ones.
    """
    earlier = [
        rolled("a", (1, [0.0, 2.0]), (2, [5.0, 5.0]), (3, [1.0]), (1, [2.0, 1.0])),
        rolled("b", (4, [-math.inf, -3.0]), (2, [5.0, 4.0])),
    ]
    now = rolled(
        "c", (5, [0.5, 0.25]), (1, [2.0, 1.0]), (3, [0.0]), (5, [0.5, 0.75]), (3, [1.5, 1.5])
    )
    looking = Looking(earlier)
    found = new(RejectionSampling, replay_ratio=5.0).select(now, looking)
    assert [(group.responses[0].text, group.meta) for group in found] == [
        ("c3 0.1", {"of": "c3"}),
        ("a0 0.1", {"of": "a0", "replayed": True}),  # as good as what came later
        ("c4 0.0", {"of": "c4"}),
        ("a1 0.0", {"of": "a1", "replayed": True}),
        ("b0 0.1", {"of": "b0", "replayed": True}),
    ]
    assert all(len(group.responses) == 1 and group.pairs is None for group in found)
    best = pytest.approx((0.75 + 2.0 + 1.5 + 5.0 - 3.0) / 5)
    assert looking.logged == {"best_reward": best, "replayed": 3, "groups_tied": 2}
    alone = new(RejectionSampling, replay_ratio=0.0).select(now, Looking(earlier))
    assert [group.responses[0].text for group in alone] == ["c3 0.1", "c1 0.0", "c4 0.0"]
    assert new(RejectionSampling).select([], Looking()) == []


def test_replayed_prompts_do_not_depend_on_the_order_of_a_set() -> None:
    earlier = rolled("a", *((number, [0.0, 1.0]) for number in range(30)))
    now = rolled("b", (40, [0.0, 1.0]), (41, [0.0, 1.0]))

    def drawn(earlier: Any) -> list[str]:
        found = new(RejectionSampling, replay_ratio=20.0).select(now, Looking([earlier]))
        return [group.responses[0].text for group in found]

    assert drawn(earlier) == drawn(earlier[::-1]) and len(drawn(earlier)) == 32


def test_the_same_words_with_other_columns_are_another_prompt() -> None:
    """A sample that is best for one answer says nothing about another answer to the same
    question.
    """

    def answered(of: str, reward: float) -> Group:
        response = Response(f"{of} {reward}", scores={"reward": reward})
        return Group(asked("which?"), (response,), id=of)

    earlier = [[answered("one", 9.0)]]
    for ratio, now, wanted in (
        (0.0, [answered("one", 1.0), answered("two", 2.0)], ["one 1.0", "two 2.0"]),
        (5.0, [answered("two", 2.0), answered("two", 3.0)], ["two 3.0", "one 9.0"]),
    ):
        found = new(RejectionSampling, replay_ratio=ratio).select(now, Looking(earlier))
        assert [group.responses[0].text for group in found] == wanted


@pytest.mark.parametrize(("replay_ratio", "replayed"), [(0.45, 1), (1.5, 6), (9.0, 10)])
def test_how_many_earlier_samples_are_replayed(replay_ratio: float, replayed: int) -> None:
    """A share of the four new ones, rounded down, and at most the ten earlier ones; which of them
    is drawn again each time, however low their rewards.
    """
    earlier, fresh = scored([[k, k + 1.0] for k in range(10)], "old "), scored([[0, 1]] * 4, "new ")
    seen = set()
    for seed in range(60):
        looking = Looking([earlier], seed)
        chosen = new(RejectionSampling, replay_ratio=replay_ratio).select(fresh, looking)
        assert [group.id for group in chosen[:4]] == [group.id for group in fresh]
        drawn = {group.id for group in chosen[4:]}
        assert len(drawn) == len(chosen) - 4 == replayed == looking.logged["replayed"]
        assert all([r.text[-1] for r in group.responses] == ["1"] for group in chosen)
        seen |= drawn
    assert len(seen) == 10


def test_the_pool_may_lack_samples() -> None:
    """Responses without a score are left out before; as many are learned as there are prompts."""
    looking = Looking()
    groups = scored([[0.1, 3.0, 2.0], [1.5], [-1.0, 0.0]])
    algorithm = new(RejectionSampling, pool="batch")
    found = algorithm.select(groups, looking)
    assert places(found) == [(0, 1), (0, 2), (1, 0)]
    assert [len(group.responses) for group in found] == [2, 1]
    assert looking.logged["best_reward"] == pytest.approx(6.5 / 3)
    assert not algorithm.needs.replay


# Through recipes

NOTHING = yaml.safe_load("""
- {algorithm: grpo, why: rewards within every group are equal, counted: {groups_without_spread: 3}}
- {algorithm: grpo, rollout: {filters: [spread]}, why: left out every group,
   counted: {filtered/spread: 3}}
- {algorithm: rest, why: "", counted: {empty_steps: 3, learned/1: 0.0}}
- {algorithm: expert_iteration, why: no sample, counted: {accepted: 0, prompts_without: 3}}
- {algorithm: {ppo: {group_baseline: true, kl_coefficient: 0.0}}, why: "",
   counted: {grad_norm: 0.0, loss: 0.0}}
""")
ALIGN = """
prompts: prompts.jsonl
reward: {python: {path: reward.py, function: reward}}
rollout: {samples_per_prompt: 2, max_new_tokens: 2}
iterations: 1
prompts_per_iteration: 3
"""


@pytest.mark.parametrize("row", NOTHING, ids=str)
def test_nothing_to_learn_is_no_success(row: dict[str, Any], tmp_path: Path, said: Said) -> None:
    """The metrics say so, and why."""
    reward = "def reward(completions):\n    return [0.0] * len(completions)\n"
    (tmp_path / "reward.py").write_text(reward, encoding="utf-8")
    stage = yaml.safe_load(ALIGN) | {"algorithm": row["algorithm"]}
    stage["rollout"] |= row.get("rollout", {})
    out = run(write_recipe(tmp_path, {"align": stage}), code=1)
    assert "1 of 1 iteration had nothing to learn" in (text := said()) and row["why"] in text
    assert not (out / "align" / "adapter").exists()
    (found,) = read_rows(out / "align" / "metrics.jsonl")
    assert row["counted"].items() <= found.items()
    assert ("loss" in found) == ("loss" in row["counted"]) == ("empty_selection" not in found)
