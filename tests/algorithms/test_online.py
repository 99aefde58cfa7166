"""Online and self-training methods: the plugins themselves against golden numbers, TRL's losses and
bad input.

tests/net/test_optimum.py tests what they converge to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from alignkit import Algorithm, Batch, Group, Outputs, RecipeError, Response, RunFailed, Skip
from alignkit.batch import Per
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import run_recipe
from alignkit.testing import check_algorithm
from alignkit_plugins.algorithms.dpo import DPO, OnlineDPO
from alignkit_plugins.algorithms.grpo import GRPO, RLOO, ReinforcePP
from alignkit_plugins.algorithms.ppo import PPO
from alignkit_plugins.algorithms.rejection_sampling import ExpertIteration, RejectionSampling, ReST
from alignkit_plugins.algorithms.reward_model import RewardModel
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
    trl_trainer,
)
from tests.net.test_optimum import Problem, make, rollout, write_prompts


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


CLIPPED_HIGH = {"clip_range_high": 0.28, "dynamic_sampling": True, "kl_coefficient": 0.0}
GSPO = {"ratio": "sequence", "clip_range": 3e-4, "clip_range_high": 4e-4}


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (GRPO, {}),
        (GRPO, {"scale_by_std": False, "aggregation": "constant_length", "max_tokens": 20}),
        (GRPO, {"aggregation": "token_mean", **CLIPPED_HIGH}),
        (GRPO, {"max_tokens": 30, "overlong_cache": 20}),
        (GRPO, GSPO),
        (RLOO, {}),
        (ReinforcePP, {"group_baseline": True, "aggregation": "sequence_mean"}),
        (ReinforcePP, {"whiten_advantages": False, "clip_range_high": 0.3}),
        (OnlineDPO, {}),
        (OnlineDPO, {"pairs": "all", "labels": "soft", "label_smoothing": 0.1}),
        (OnlineDPO, {"pairs": "all", "labels": "bradley_terry", "loss": "ipo"}),
        (ReST, {}),
        (ReST, {"scale": "absolute", "thresholds": [0.0]}),
        (ExpertIteration, {"max_per_prompt": 1}),
        (RejectionSampling, {"pool": "batch"}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else ",".join(value) or "default",
)
def test_they_conform(cls: type[Algorithm], options: dict[str, Any]) -> None:
    check_algorithm(cls, options)


@pytest.mark.parametrize(
    ("cls", "options", "named"),
    [
        (GRPO, {"aggregation": "constant_length"}, "need max_tokens"),
        (GRPO, {"overlong_cache": 4}, "need max_tokens"),
        (GRPO, {"max_tokens": 4}, "only applies"),
        (GRPO, {"overlong_cache": 4, "max_tokens": 3}, "above max_tokens 3"),
        (GRPO, {"ratio": "sequence", "aggregation": "token_mean"}, "sequence_mean"),
        (OnlineDPO, {"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing only applies"),
        (RejectionSampling, {"pool": "batch", "replay_ratio": 0.5}, "replays nothing"),
        (ReST, {"thresholds": [0.5, 0.5]}, "increase"),
        (ReST, {"thresholds": [0.1, 0.5, 1.5]}, "quantiles"),
        (ReST, {"thresholds": [0.5, 1.0]}, "quantiles"),
        (ReST, {"thresholds": [-0.1, 0.5]}, "quantiles"),
        (ReST, {"thresholds": [0.5], "lr_decay": 0.5}, "several"),
        (ReST, {"thresholds": []}, "at least 1 item"),
    ],
)
def test_what_may_not_be_combined(
    cls: type[Algorithm], options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValidationError, match=named):
        cls.Options(**options)


# Advantages, against tests/golden/group_advantage.json


@pytest.mark.parametrize("case", golden("group_advantage", "rewards"))
def test_group_advantages(case: Mapping[str, Any]) -> None:
    table, expected = double(case["inputs"]["rewards"]), case["expected"]
    given = rollouts(table.flatten(), torch.arange(len(table)).repeat_interleave(table.shape[1]))
    centered = new(GRPO, scale_by_std=False)
    for name, algorithm in (
        ("grpo_ddof1_eps1e-4", new(GRPO)),
        ("dr_grpo", centered),
        ("rloo", new(RLOO, kl_coefficient=0.0)),
        ("reinforce_pp_baseline_ddof1", new(ReinforcePP, group_baseline=True)),
    ):
        close(advantages_of(algorithm, given).view_as(table), expected[name])
    keeps = expected["dapo_keep_group"]
    assert centered.metrics["groups_without_spread"] == keeps.count(False)
    groups = scored(table.tolist())
    assert list(map(new(GRPO, dynamic_sampling=True).keep_group, groups)) == keeps
    assert list(map(new(GRPO).keep_group, groups)) == [table.shape[1] > 1] * len(table)


@pytest.mark.silent_bug(
    "sampling: filters",
    "Dynamic sampling keeps groups of wrong answers because a length penalty sets them apart.",
    "The filter sees the reward before the penalty.",
    "NVIDIA-NeMo/RL#2431",
)
def test_an_overlong_penalty_keeps_no_group() -> None:
    """Equal answers of unequal lengths: only the penalty would set them apart."""
    algorithm = new(GRPO, dynamic_sampling=True, max_tokens=4, overlong_cache=4)
    responses = [Response(text="x" * n, tokens=(5,) * n, scores={"reward": 0.0}) for n in (1, 4)]
    assert not algorithm.keep_group(Group(asked("?"), tuple(responses)))


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


@pytest.mark.silent_bug(
    "losses: KL",
    "GRPO uses k1 as a loss, whose gradient is 0 on average.",
    "GRPO uses k3, as in its paper; k1 is only used in rewards.",
    "NVIDIA-NeMo/RL#2506",
)
@pytest.mark.parametrize("case", golden("kl_estimators", "logprob"))
def test_which_kl_is_where(case: Mapping[str, Any]) -> None:
    """RLOO prices k1 of a response, REINFORCE++ k1 from a token to the end; GRPO's loss has k3 of
    the new policy.
    """
    logprobs, reference, mask = (case["inputs"][key] for key in ("logprob", "ref_logprob", "mask"))
    expected, count = case["expected"], len(mask)
    given = rollouts([0.0] * count, [0] * count, mask, logprobs, reference)
    sums = -double(expected["k1_sequence_sum"])
    others = (sums.sum() - sums) / max(1, count - 1) if count > 1 else sums
    close(advantages_of(new(RLOO, kl_coefficient=1.0), given), sums - others, atol=1e-7)
    remaining = -double(expected["k1"]).flip(-1).cumsum(-1).flip(-1)[given.mask]
    signal = new(ReinforcePP, kl_coefficient=1.0, whiten_advantages=False).signal(given)
    close(
        0 * remaining if isinstance(signal, Skip) else signal["advantages"][given.mask], remaining
    )
    algorithm = new(GRPO, kl_coefficient=0.3, aggregation="token_mean")
    given.signals = {"advantages": torch.zeros(count, dtype=torch.float64)}
    term = algorithm.loss(given, Outputs(logprobs=double(logprobs)))["kl_loss"]
    assert (term.per, term.coefficient) == (Per.TOKEN, 0.3)
    close(term.values[given.mask], double(expected["k3"])[given.mask])


# Losses, against tests/golden/group_policy_loss.json

VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": {"aggregation": "constant_length"},
    "dapo": {"aggregation": "token_mean"},
    "gspo": {"ratio": "sequence"},
    "gspo_wide": {"ratio": "sequence"},
}


def part_of(inputs: Mapping[str, Any], logprobs: Tensor, rows: slice) -> tuple[Batch, Outputs]:
    """Rows of a golden batch, as wide as their longest response: a micro-batch knows nothing of the
    others.
    """
    mask = torch.tensor(inputs["mask"][rows]).bool()
    width = max(1, int(mask.any(0).sum()))
    old, reference = (double(inputs[f"{x}_logprob"])[rows, :width] for x in ("old", "ref"))
    given = batch(mask[:, :width], old_logprobs=old, reference_logprobs=reference)
    given.signals = {"advantages": double(inputs["advantages"])[rows]}
    return given, Outputs(logprobs=logprobs[rows, :width])


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
    logprobs = double(inputs["logprob"]).requires_grad_()
    for cuts in ([slice(None)], [slice(0, 1), slice(1, None)], [slice(0, 3), slice(3, None)]):
        loss = averaged(algorithm, [part_of(inputs, logprobs, rows) for rows in cuts])
        close(loss, expected["loss"])
        close(gradient(loss, logprobs), expected["grad_logprob"])
    whole = part_of(inputs, logprobs, slice(None))
    close(reported(algorithm, *whole)["clip_fraction"], expected["clip_fraction"])


def test_a_constant_length_counts_empty_responses() -> None:
    """Dr. GRPO divides by all responses times max_tokens, in the KL as in the policy's term."""
    old = double([[-1.0, -1.0], [0.0, 0.0]])
    given = batch([[1, 1], [0, 0]], old_logprobs=old, reference_logprobs=old + 0.5)
    given.signals = {"advantages": double([3.0, 1.0])}
    algorithm = new(GRPO, aggregation="constant_length", max_tokens=4, kl_coefficient=0.2)
    wanted = (-3.0 * 2 + 0.2 * 2 * (math.exp(0.5) - 1 - 0.5)) / (2 * 4)
    close(loss_of(algorithm, given, logprobs=old), wanted)


# TRL's losses on the same tensors


def trl_loss(cls: Any, given: Batch, logprobs: Tensor, **settings: Any) -> tuple[Tensor, float]:
    """The loss of TRL's trainer, and the share that it clips."""
    fake = trl_trainer(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, 0 * logprobs, None),
        **settings,
    )
    inputs = {
        **dict.fromkeys(("prompt_ids", "prompt_mask", "completion_ids"), given.tokens),
        "completion_mask": given.mask.long(),
        "advantages": given["advantages"],
        "old_per_token_logps": given.old_logprobs,
        "old_logps": (given.old_logprobs * given.mask).sum(1),
        "ref_per_token_logps": given.reference_logprobs,
        "num_items_in_batch": given.mask.sum(),
    }
    loss: Tensor = cls._compute_loss(fake, None, inputs)
    return loss, float(fake._metrics["eval"].get("clip_ratio/region_mean", [math.nan])[0])


DAPO = {"kl_coefficient": 0.2, "clip_range": 0.1, "clip_range_high": 0.28}
CISPO = {"policy_loss": "cispo", "clip_range_high": 0.3, "kl_coefficient": 0.1}


@pytest.mark.silent_bug(
    "losses: length",
    "The loss is averaged over samples where tokens are meant.",
    "Each way of averaging has TRL's loss and gradient.",
    "PrimeIntellect-ai/prime-rl#102",
)
@pytest.mark.parametrize(
    ("name", "options", "level"),
    [
        ("grpo", {"kl_coefficient": 0.04}, "token"),
        ("dapo", {**DAPO, "aggregation": "token_mean"}, "token"),
        ("dr_grpo", {"aggregation": "constant_length", "max_tokens": 9}, "token"),
        ("grpo", {"ratio": "sequence", "clip_range": 0.02}, "sequence"),
        ("cispo", {**CISPO, "aggregation": "token_mean"}, "token"),
    ],
    ids=["grpo", "dapo", "dr_grpo", "gspo", "cispo"],
)
def test_trl_has_the_same_group_losses(name: str, options: dict[str, Any], level: str) -> None:
    """TRL's epsilon_high is CISPO's cap itself; ours is its distance from 1, as in the paper."""
    from trl import GRPOTrainer

    given, moved = random_batch(len(options))
    algorithm = new(GRPO, **options)
    own = algorithm.options
    high = own.clip_range_high or own.clip_range
    wanted, clipped = trl_loss(
        GRPOTrainer,
        given,
        moved,
        loss_type=name,
        importance_sampling_level=level,
        beta=own.kl_coefficient,
        epsilon_low=own.clip_range,
        epsilon_high=1 + high if name == "cispo" else high,
        max_completion_length=own.max_tokens,
    )
    alike(loss_of(algorithm, given, logprobs=moved), wanted, moved)
    if name != "cispo":
        assert 0 < clipped < 1
        found = reported(algorithm, given, Outputs(logprobs=moved))["clip_fraction"]
        assert found == pytest.approx(clipped)


def test_trl_has_the_same_rloo_loss() -> None:
    from trl import RLOOTrainer

    given, moved = random_batch(3)
    algorithm = new(RLOO, clip_range=0.2, clip_range_high=0.4)
    wanted, clipped = trl_loss(RLOOTrainer, given, moved, epsilon_low=0.2, epsilon_high=0.4)
    alike(loss_of(algorithm, given, logprobs=moved), wanted, moved)
    found = reported(algorithm, given, Outputs(logprobs=moved))["clip_fraction"]
    assert 0 < found < 1 and found == pytest.approx(clipped)


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
        close(found["clip_fraction"], expected["clip_fraction_active"])
        close(found["ratio"], expected["mean_ratio"], rtol=1e-6)
        close(found["approx_kl"], expected["approx_kl_k3"], rtol=1e-6)
        assert found.get("value_clip_fraction", 0.0) == 0.0
    # GRPO reports the same.
    given.signals["advantages"] = given["advantages"][:, 0]
    other = reported(new(GRPO), given, out)
    assert [other[key] for key in ("ratio", "approx_kl")] == [found["ratio"], found["approx_kl"]]


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


@pytest.mark.parametrize("case", golden("rm_pairwise", "chosen"))
def test_accuracy_of_pairs(case: Mapping[str, Any]) -> None:
    """Of a reward model by its scores, and of online DPO by log-ratios: a tie is wrong."""
    both = double([*case["inputs"]["chosen"], *case["inputs"]["rejected"]])
    count = len(both) // 2
    owner = torch.zeros(2 * count, dtype=torch.int64)
    rows = [(i, count + i, 1.0) for i in range(count)]
    pairs = pairs_of(rows, owner, levels=("slightly",) * count)
    given = batch(torch.ones(2 * count, 1), pairs, group=owner)
    given.reference_logprobs = torch.zeros(2 * count, 1, dtype=torch.float64)
    wanted = pytest.approx(case["expected"]["accuracy_strict"], abs=1e-9)
    found = reported(new(RewardModel), given, Outputs(scores=both))
    assert [found["accuracy"], found["accuracy/slightly"]] == [wanted, wanted]
    close(found["rewards/margins"], case["expected"]["mean_margin"], rtol=1e-6)
    assert reported(new(OnlineDPO), given, Outputs(logprobs=both[:, None]))["accuracy"] == wanted


def test_ratios_of_whole_responses() -> None:
    """RLOO's is a product over tokens, GSPO's its root by the length; the second token of the
    second is no token.
    """
    old = double([[-1.0, -2.0], [-3.0, 9.0]])
    given = batch([[1, 1], [1, 0]], old_logprobs=old, reference_logprobs=old)
    given.signals = {"advantages": double([1.0, 1.0])}
    out = Outputs(logprobs=double([[-0.9, -1.7], [-2.9, 0.0]]))
    moved = [math.exp(0.1) - 1 - 0.1, math.exp(0.3) - 1 - 0.3, math.exp(0.1) - 1 - 0.1]
    for algorithm, first in ((new(RLOO), 0.4), (new(GRPO, ratio="sequence"), 0.2)):
        found = reported(algorithm, given, out)
        assert found["ratio"] == pytest.approx((math.exp(first) + math.exp(0.1)) / 2)
        assert found["approx_kl"] == pytest.approx(sum(moved) / 3)
        assert found["clip_fraction"] == 0.5  # the first is above 1.2


@pytest.mark.silent_bug(
    "losses: masks",
    "Advantages are passed where the loss expects the mask.",
    "Masked tokens have a gradient of 0.",
    "verl-project/verl#2506",
)
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (GRPO, {}),
        (GRPO, {"aggregation": "token_mean", "kl_coefficient": 0.1}),
        (GRPO, {"aggregation": "constant_length", "max_tokens": 4}),
        (GRPO, {"ratio": "sequence"}),
        (RLOO, {}),
        (ReinforcePP, {}),
        (ReinforcePP, {"aggregation": "sequence_mean"}),
        (PPO, {"entropy_coefficient": 0.1, "dual_clip": 3.0}),
        (PPO, {"aggregation": "sequence_mean"}),
    ],
)
def test_what_the_mask_removes_gets_a_gradient_of_zero(
    cls: type[Algorithm], options: dict[str, Any]
) -> None:
    """Not one that is no number, either: what stands there may be so large that its ratio is
    infinite.
    """
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    noise = double([[-1.0, -2.0, 1e4], [-0.5, 1e4, 1e4], [1e4, 1e4, 1e4]])
    ones = torch.ones(3, 3, dtype=torch.float64)
    given = batch(mask, old_logprobs=0 * ones, old_values=0 * ones, reference_logprobs=-0.3 * ones)
    advantages = double([[1.0, -1.0, 2.0], [-2.0, 5.0, -5.0], [3.0, 3.0, 3.0]])
    by_response = cls in (GRPO, RLOO)
    given.signals = {"advantages": advantages[:, 0] if by_response else advantages, "returns": ones}
    logprobs, values = noise.clone().requires_grad_(), (noise / 10).requires_grad_()
    loss = loss_of(new(cls, **options), given, logprobs=logprobs, values=values, entropy=ones)
    first, second = torch.autograd.grad(loss, [logprobs, values], allow_unused=True)
    for moved in (first, second):
        assert moved is None or bool((moved[~mask] == 0).all())
    assert loss.isfinite() and bool(first.isfinite().all()) and float(first.abs().sum()) > 0


# What is skipped


AWAY = [[0.5], [0.0], [0.0], [0.0]]  # nats from the reference


@pytest.mark.parametrize("cls", [GRPO, RLOO])
def test_an_iteration_without_a_signal_is_skipped(cls: type[Algorithm]) -> None:
    """One group of different rewards is enough to learn from, and so is a KL with a coefficient."""
    for rewards, old, kl_coefficient, skipped in (
        ([1.0, 1.0, 2.0, 2.0], 0.0, 0.1, True),
        ([1.0, 1.0, 2.0, 2.0], AWAY, 0.0, True),
        ([1.0, 1.0, 2.0, 2.0], AWAY, 0.1, False),
        ([1.0, 1.0, 2.0, 2.5], 0.0, 0.0, False),
    ):
        signal = new(cls, kl_coefficient=kl_coefficient).signal(
            rollouts(rewards, [0, 0, 1, 1], old=old)
        )
        assert isinstance(signal, Skip) == skipped


@pytest.mark.parametrize("whiten", [True, False])
def test_reinforce_pp_skips_an_iteration_of_equal_returns(whiten: bool) -> None:
    for rewards, old, options, skipped in (
        ([1.0] * 4, 0.0, {}, True),
        ([1.0, 1.0, 2.0, 2.0], 0.0, {}, False),
        ([1.0, 1.0, 2.0, 2.0], 0.0, {"group_baseline": True}, True),
        ([1.0] * 4, AWAY, {}, False),
        ([1.0] * 4, AWAY, {"kl_coefficient": 0.0}, True),
    ):
        algorithm = new(ReinforcePP, whiten_advantages=whiten, **options)
        signal = algorithm.signal(rollouts(rewards, [0, 0, 1, 1], old=old))
        assert isinstance(signal, Skip) == skipped


@pytest.mark.parametrize(
    ("algorithm", "least"),
    [
        (new(GRPO), 2),
        (new(RLOO), 2),
        (new(ReinforcePP, group_baseline=True), 2),
        (new(ReinforcePP), 1),
    ],
)
def test_a_group_of_one_has_no_baseline(algorithm: Algorithm, least: int) -> None:
    single, two = scored([[1.0], [1.0, 1.0]])
    assert algorithm.needs.min_samples == least
    assert (algorithm.keep_group(single), algorithm.keep_group(two)) == (least == 1, True)


# Online DPO


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "hinge"])
def test_online_dpo_has_the_losses_of_dpo(name: str) -> None:
    given, moved = random_batch(2)
    given.pairs = pairs_of([(0, 1, 1.0), (3, 2, 0.7), (5, 4, 0.9)], given.group_index)
    options = {"beta": 0.3, "loss": name, "label_smoothing": 0.1 if name == "sigmoid" else 0.0}
    online, offline = new(OnlineDPO, **options), new(DPO, **options)
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
    assert [f"{better} {worse}" for better, worse, _ in found] == [
        "0.1 0.0",
        "0.0 0.2",
        "0.3 0.0",
        "0.1 0.2",
        "0.3 0.2",
    ]
    assert looking.logged == {"pairs": 5, "groups_tied": 0}
    responses = [
        Response(text=text, tokens=tokens, scores={"reward": reward})
        for text, tokens, reward in (("a", (1, 2), 0.0), ("a", (1, 2), 1.0), ("b", (1, 3), 2.0))
    ]
    found, looking = paired(
        [Group((), tuple(responses)), Group((), (*responses[:2],))], pairs="all"
    )
    assert found == [("b", "a", 1.0)] * 2 and looking.logged == {"pairs": 2, "groups_tied": 1}


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


@pytest.mark.parametrize(
    ("options", "threshold", "accepted", "learned", "without"),
    [
        ({}, 0.3, 6, "00 02 03 20 21 23", 1),  # the mean
        ({"threshold": 0.5}, 0.5, 4, "00 02 03 21", 1),
        ({"threshold": -0.5}, -0.5, 11, "00 01 02 03 10 11 12 13 20 21 23", 0),
        ({"max_per_prompt": 2}, 0.3, 6, "00 02 20 21", 1),
    ],
)
def test_expert_iteration_learns_what_is_accepted(
    options: dict[str, Any], threshold: float, accepted: int, learned: str, without: int
) -> None:
    groups = scored([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.5, 0.6, -1.0, 0.5]])
    looking = Looking()
    found = places(new(ExpertIteration, **options).select(groups, looking))
    assert " ".join(f"{p}{k}" for p, k in found) == learned
    counts = {"accepted": accepted, "learned": len(found), "prompts_without": without}
    assert looking.logged == pytest.approx({"threshold": threshold, **counts})


def test_equal_rewards_are_not_above_their_mean() -> None:
    for equal in ([1.0] * 4, [0.7] * 3):  # whose mean is rounded to less
        assert new(ExpertIteration).select(scored([equal]), Looking()) == []


@pytest.mark.parametrize("cls", [RejectionSampling, ReST, ExpertIteration])
def test_what_is_selected_becomes_likelier(cls: type[Algorithm]) -> None:
    logprobs = -double([[1.0, 2.0], [4.0, 9.0]])
    loss = new(cls).loss(batch([[1, 1], [1, 0]]), Outputs(logprobs=logprobs))
    assert list(loss) == ["nll"] and torch.equal(loss["nll"].values, -logprobs)
    assert (loss["nll"].per, loss["nll"].coefficient) == (Per.TOKEN, 1.0)


# Best of K and RAFT, against tests/golden/best_of_n.json


@pytest.mark.parametrize("case", golden("best_of_n", "rewards_per_iteration"))
def test_best_of_k(case: Mapping[str, Any]) -> None:
    iterations, expected = case["inputs"]["rewards_per_iteration"], case["expected"]
    groups = [scored(rewards) for rewards in iterations]
    for number, wanted in enumerate(expected["per_iteration"]):
        looking = Looking(groups[:number])
        found = new(RejectionSampling, replay_ratio=0.0).select(groups[number], looking)
        assert places(found) == list(enumerate(wanted["index"]))
        close(looking.logged["best_reward"], expected["mean_best_of_k"][number], rtol=1e-6)
    for number, wanted in enumerate(expected["carry_over_best"]):
        looking = Looking(groups[:number])
        found = new(RejectionSampling).select(groups[number], looking)
        assert places(found) == list(enumerate(wanted["index"]))
        close([group.responses[0].reward for group in found], wanted["reward"])
        replayed = sum(iteration < number for iteration in wanted["iteration"])
        assert looking.logged["replayed"] == replayed
    looking = Looking(groups[1:])
    found = new(RejectionSampling, pool="batch").select(groups[0], looking)
    flat = [p * len(iterations[0][0]) + k for p, k in places(found)]
    assert flat == expected["raft_global_top_1_over_k_flat_index"]
    assert looking.logged["replayed"] == 0


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


@pytest.mark.parametrize(
    ("replay_ratio", "replayed"), [(0.0, 0), (0.3, 1), (0.5, 2), (1.5, 6), (9.0, 10)]
)
def test_how_many_earlier_samples_are_replayed(replay_ratio: float, replayed: int) -> None:
    """A share of the four new ones, rounded down, and at most the ten earlier ones."""
    looking = Looking([scored([[0.0, 1.0]] * 10, "old ")])
    fresh = scored([[0.0, 1.0]] * 4, "new ")
    chosen = new(RejectionSampling, replay_ratio=replay_ratio).select(fresh, looking)
    assert [group.id for group in chosen[:4]] == [group.id for group in fresh]
    assert len({group.id for group in chosen[4:]}) == len(chosen) - 4 == replayed
    assert looking.logged["replayed"] == replayed
    assert all([r.text[-1] for r in group.responses] == ["1"] for group in chosen)


def test_replayed_prompts_are_drawn_again_each_time() -> None:
    """Every other prompt returns now and then, with its best sample, however low its rewards."""
    earlier = scored([[0.0, 1.0], [5.0, 4.0], [1.0, 9.0], [0.5, 0.2], [7.0, 7.5], [-3.0, -2.0]])
    seen = dict.fromkeys([(1, 0), (2, 1), (3, 0), (4, 1), (5, 1)], 0)
    for seed in range(200):
        algorithm, looking = new(RejectionSampling, replay_ratio=2.0), Looking([earlier], seed)
        fresh, *carried = places(algorithm.select(scored([[2.0, 1.5]]), looking))
        assert fresh == (0, 0) and len(set(carried)) == len(carried) == 2
        for place in carried:
            seen[place] += 1
    assert all(50 <= count <= 110 for count in seen.values())


def test_the_pool_may_lack_samples() -> None:
    """Responses without a score are left out before; as many are learned as there are prompts."""
    looking = Looking()
    groups = scored([[0.1, 3.0, 2.0], [1.5], [-1.0, 0.0]])
    found = new(RejectionSampling, pool="batch").select(groups, looking)
    assert places(found) == [(0, 1), (0, 2), (1, 0)]
    assert [len(group.responses) for group in found] == [2, 1]
    assert looking.logged["best_reward"] == pytest.approx(6.5 / 3)


# Through recipes


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return make(tmp_path_factory.mktemp("problem"), "abc", 1)


def recipe(problem: Problem, reward: str, algorithm: Any, **more: Any) -> Path:
    """Three prompts of four samples; `reward` is Python, for i of them."""
    code = f"def reward(completions):\n    return [{reward} for i in range(len(completions))]\n"
    (problem.folder / "reward.py").write_text(code, encoding="utf-8")
    stage = {
        "algorithm": algorithm,
        "prompts": write_prompts(problem, 3),
        "reward": {"python": {"path": "reward.py", "function": "reward"}},
        "rollout": rollout(problem, 4),
        "iterations": 1,
        "prompts_per_iteration": 3,
        **more,
    }
    model = {"base": str(problem.base), "dtype": "float32", "lora": "none"}
    path = problem.folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"model": model, "stages": {"align": stage}}), encoding="utf-8")
    return path


def metrics_of(path: Path, why: str = "") -> dict[str, Any]:
    """Of the only iteration; of a run that fails for this reason because nothing was learned."""
    number = len(list(path.parent.glob("run-*")))
    out = path.parent / f"run-{number}"
    if why:
        with pytest.raises(RunFailed, match=f"1 of 1 iteration had nothing to learn.*{why}"):
            run_recipe(load_recipe(path), out)
        assert not (out / "align" / "adapter").exists()
    else:
        run_recipe(load_recipe(path), out)
    (line,) = (out / "align" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


CENTERED_PPO = {"ppo": {"group_baseline": True, "shared_value": True, "lam": 1.0}}
HIGH_BAR = {"expert_iteration": {"threshold": 5.0}}


@pytest.mark.parametrize(
    ("algorithm", "reward", "why", "counted"),
    [
        ("grpo", "0.0", "equal", {"groups_without_spread": 3}),
        ({"grpo": {"dynamic_sampling": True}}, "0.0", "", {"groups_without_signal": 3}),
        ("rloo", "0.0", "equal", {"advantage_size": 0.0}),
        ("rloo", "1.0 if i % 4 == 0 else None", "left out every group", {}),
        ("reinforce_pp", "0.0", "equal", {"return_std": 0.0}),
        ("online_dpo", "0.0", "", {"groups_tied": 3, "pairs": 0}),
        ("rest", "0.0", "", {"empty_steps": 3, "learned/1": 0.0}),
        ("expert_iteration", "0.0", "no sample", {"accepted": 0, "prompts_without": 3}),
        (HIGH_BAR, "float(i % 3)", "no sample", {"accepted": 0}),
        ("rejection_sampling", "0.0", "no sample", {"groups_tied": 3}),
        (CENTERED_PPO, "0.0", "", {"grad_norm": 0.0, "loss": 0.0}),
    ],
    ids=str,
)
def test_nothing_to_learn_is_no_success(
    problem: Problem, algorithm: Any, reward: str, why: str, counted: dict[str, float]
) -> None:
    """The metrics say so, and why."""
    found = metrics_of(recipe(problem, reward, algorithm), f"[\\s\\S]*{why}")
    assert {key: found[key] for key in counted} == counted
    if algorithm != CENTERED_PPO:
        assert found["empty_selection"] == 1.0 and "loss" not in found and "grad_norm" not in found


def test_iterations_that_learn_nothing_are_told(
    problem: Problem, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(problem, "", {"rloo": {"kl_coefficient": 0.0}}, iterations=2)
    reward = "calls = []\ndef reward(completions):\n    calls.append(1)\n"
    reward += "    return [float(i % 2) * (len(calls) % 2) for i in range(len(completions))]\n"
    (problem.folder / "reward.py").write_text(reward, encoding="utf-8")
    run_recipe(load_recipe(path), problem.folder / "idle")
    assert "align: 1 of 2 iterations had nothing to learn from" in capsys.readouterr().err


def test_what_an_algorithm_leaves_out_plays_no_part_in_whitening(problem: Problem) -> None:
    """Two of three prompts have one response with a score: their returns are no part of mean and
    deviation. The scores of the whole group are 0, 9, 18, 27.
    """
    algorithm = {"reinforce_pp": {"group_baseline": True, "kl_coefficient": 0.0}}
    reward = "float(9 * i) if i < 5 or i == 8 else None"
    found = metrics_of(recipe(problem, reward, algorithm, epochs=1, batch_size=9))
    assert found["unscored"] == 6 and found["groups_without_signal"] == 2
    assert found["return"] == pytest.approx(0.0, abs=1e-5)
    assert found["return_std"] == pytest.approx(9 * 1.25**0.5)


def test_dynamic_sampling_leaves_out_groups_without_spread(problem: Problem) -> None:
    """Two of three prompts get equal rewards: they count neither in the loss nor in its
    denominators.
    """
    rows, unclipped = {}, {"adamw": {"max_grad_norm": 100.0}}
    for dynamic in (False, True):
        options = {"dynamic_sampling": dynamic, "kl_coefficient": 0.0, "aggregation": "token_mean"}
        reward, algorithm = "float(i) if i < 4 else 1.0", {"grpo": options}
        rows[dynamic] = metrics_of(
            recipe(problem, reward, algorithm, epochs=1, optimizer=unclipped)
        )
    assert rows[False]["groups_without_spread"] == 2 and "groups_without_signal" not in rows[False]
    assert rows[True]["groups_without_signal"] == 2 and rows[True]["groups_without_spread"] == 0
    assert rows[True]["grad_norm"] == pytest.approx(3 * rows[False]["grad_norm"], rel=1e-4)


def test_a_length_that_the_rollout_does_not_have_is_refused(problem: Problem) -> None:
    for tokens in (1, 4000):
        path = recipe(problem, "0.0", {"grpo": {"overlong_cache": 1, "max_tokens": tokens}})
        if tokens == 1:
            load_recipe(path)
        else:
            with pytest.raises(RecipeError, match="max_new_tokens 4000, but 'rollout' has 1"):
                load_recipe(path)


@pytest.mark.silent_bug(
    "advantages: groups",
    "With one sample per prompt every advantage is 0, and training does nothing.",
    "The recipe is refused.",
    "OpenRLHF/OpenRLHF#1250",
)
@pytest.mark.parametrize(
    ("name", "options", "refused"),
    [
        ("grpo", {}, True),
        ("rloo", {}, True),
        ("online_dpo", {}, True),
        ("reinforce_pp", {"group_baseline": True}, True),
        ("reinforce_pp", {"group_baseline": False}, False),
        ("ppo", {"group_baseline": True}, True),
        ("ppo", {}, False),
    ],
)
def test_one_sample_a_prompt_is_refused(
    problem: Problem, name: str, options: dict[str, Any], refused: bool
) -> None:
    """What is needed depends on the options."""
    one = {**rollout(problem, 1)}
    path = recipe(problem, "1.0", {name: options}, rollout=one)
    if refused:
        with pytest.raises(RecipeError, match=f"{name} needs at least 2 responses"):
            load_recipe(path)
    else:
        load_recipe(path)
