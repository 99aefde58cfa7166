"""Online and self-training methods end where their theory says: whole recipes on answers few enough
to enumerate.

RLOO, REINFORCE++ and online DPO share PPO's optimum, pi_ref exp(r / beta) / Z. GRPO does not: its
KL is a loss whose gradient is that of KL(pi_ref || pi), and dividing by the group's deviation
rescales beta; where its expected update vanishes is solved for here from all groups of K samples,
in float64 and without the plugin's code. ReST, expert iteration and RAFT learn the distributions
that their selections have.
"""

from collections.abc import Callable, Mapping
from itertools import combinations_with_replacement
from math import factorial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_optimum import (
    WITHIN,
    Problem,
    check,
    make,
    rollout,
    total_variation,
    train,
    write_prompts,
    write_reward,
)
from torch import Tensor

from alignkit.data.group import read_groups

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def problem(request: pytest.FixtureRequest, tmp_path: Path) -> Problem:
    letters, length = request.param
    return make(tmp_path, letters, length)


ONE, THREE = ("abcdef", 1), ("ab", 3)


# --- where GRPO's expected update vanishes


def by_prefix(x: Tensor, problem: Problem) -> list[Tensor]:
    """Sums of x [answers] over all answers that begin with each 1, 2, ... letters: [n], [n, n],
    ...
    """
    n = len(problem.letters)
    return [x.reshape([n] * (t + 1) + [-1]).sum(-1) for t in range(problem.length)]


def next_letter(p: Tensor, problem: Problem) -> list[Tensor]:
    """P(letter | the letters before it) of a distribution over answers."""
    return [x / x.sum(-1, keepdim=True) for x in by_prefix(p, problem)]


def whole(steps: list[Tensor]) -> Tensor:
    """The distribution over answers with these probabilities of the next letter."""
    p = torch.ones((), dtype=torch.float64)
    for step in steps:
        p = p.unsqueeze(-1) * step
    return p.flatten()


def factorial_of(count: float) -> float:
    return float(factorial(int(count)))


def fixed_point(
    problem: Problem, k: int, beta: float, scale: str = "none", entropy: float = 0.0
) -> Tensor:
    """Where the mean over all groups of k samples of GRPO's gradient is zero in every logit of
    every context.

    A sampled response i adds A_i (1[v] - pi(v | c)) to the logit of v in each context c that it
    passes, and k3, whose gradient is (1 - pi_ref / pi) grad log pi, on average beta (pi_ref(v | c)
    - pi(v | c)). An entropy bonus adds -entropy pi(v | c) (log pi(v | c) + H). scale: what
    advantages are divided by: deviation, mean (MaxRL) or none.
    """
    answers, reference = len(problem.rewards), next_letter(problem.reference, problem)
    members = torch.tensor(list(combinations_with_replacement(range(answers), k)))
    counts = torch.zeros(len(members), answers, dtype=torch.float64).scatter_add_(
        1, members, torch.ones(len(members), k, dtype=torch.float64)
    )
    orders = factorial(k) / counts.clone().apply_(factorial_of).prod(1)
    mean = counts @ problem.rewards / k
    centered = problem.rewards - mean[:, None]
    if scale == "deviation":
        variance = (counts * centered**2).sum(1) / (k - 1)
        centered = centered / (variance.sqrt() + 1e-4)[:, None]
    elif scale == "mean":
        centered = centered / mean.where(mean > 0, 1.0)[:, None]
    steps = [x.clone() for x in reference]
    for _ in range(5000):
        p = whole(steps)
        chance = orders * torch.exp(counts @ p.log())
        assert abs(float(chance.sum()) - 1) < 1e-9
        gained = by_prefix(chance @ (counts / k * centered), problem)
        residual = 0.0
        for t, gain in enumerate(gained):
            passing = by_prefix(p, problem)[t].sum(-1, keepdim=True)
            pull = (
                gain / passing
                - steps[t] * gain.sum(-1, keepdim=True) / passing
                + beta * (reference[t] - steps[t])
            )
            surprise = -steps[t].log()
            pull = pull + entropy * steps[t] * (
                surprise - (steps[t] * surprise).sum(-1, keepdim=True)
            )
            residual = max(residual, float(pull.abs().max()))
            steps[t] = torch.softmax(steps[t].log() + pull / beta, -1)
        if residual < 1e-8:
            return whole(steps)
    raise AssertionError(f"no fixed point: {residual}")


def test_the_fixed_point_of_two_samples() -> None:
    """With K = 2 the deviation is |r1 - r2| / sqrt(2), so a winner's advantage is 1 / sqrt(2)
    whatever it won by.

    Half the responses of the 2 p1 p2 mixed groups win: p1 p2 / sqrt(2) = beta (p2 - ref2).
    """
    rewards, reference = (torch.tensor(x, dtype=torch.float64) for x in ([0.0, 5.0], [0.7, 0.3]))
    bandit: Any = SimpleNamespace(letters="ab", length=1, rewards=rewards, reference=reference)
    p = fixed_point(bandit, 2, 0.5, "deviation")
    assert float(p[0] * p[1] / 2**0.5) == pytest.approx(float(0.5 * (p[1] - 0.3)), abs=1e-4)
    # Without the deviation a winner's advantage is half of what it won by.
    p = fixed_point(bandit, 2, 0.5)
    assert float(p[0] * p[1] * 2.5) == pytest.approx(float(0.5 * (p[1] - 0.3)), abs=1e-6)


# --- whole recipes


def align(
    problem: Problem,
    algorithm: str,
    options: Mapping[str, Any],
    prompts: int,
    samples: int,
    **more: Any,
) -> Tensor:
    """The policy after a stage that learns from `prompts` groups of `samples` in each iteration,
    all in one batch.
    """
    stage = {
        "algorithm": {algorithm: dict(options)},
        "prompts": write_prompts(problem, prompts),
        "reward": write_reward(problem),
        "rollout": rollout(problem, samples),
        "prompts_per_iteration": prompts,
        "batch_size": prompts,
        "learning_rate": 5e-3,
        # A short memory suits advantages that vanish.
        "optimizer": {"adamw": {"betas": [0.5, 0.9], "max_grad_norm": 10.0}},
    }
    return train(problem, trained={**stage, **more})


DR: dict[str, Any] = {"scale_by_std": False, "aggregation": "constant_length", "max_tokens": 7}


def test_grpo_s_fixed_point_is_its_own(tmp_path: Path) -> None:
    """Neither PPO's optimum nor that of the other normalization, so that the tests below can tell
    them apart.
    """
    one, three = make(tmp_path / "1", *ONE), make(tmp_path / "3", *THREE)
    other = {"deviation": "none", "none": "deviation"}
    for problem, k, beta, scale in (
        (one, 8, 1.0, "deviation"),
        (one, 8, 0.5, "none"),
        (three, 12, 3.0, "deviation"),
    ):
        found = fixed_point(problem, k, beta, scale)
        assert total_variation(found, problem.optimum(beta)) > 3 * WITHIN
        assert total_variation(found, fixed_point(problem, k, beta, other[scale])) > 3 * WITHIN
    found = fixed_point(three, 12, 1.5)
    assert total_variation(found, fixed_point(three, 12, 1.5, "deviation")) > 3 * WITHIN


# A token's GSPO is GRPO; of three tokens it has one ratio.
@pytest.mark.parametrize(
    ("problem", "k", "beta", "options"),
    [
        (ONE, 8, 1.0, {}),
        pytest.param(ONE, 8, 0.5, DR, marks=pytest.mark.slow),
        pytest.param(THREE, 12, 3.0, {}, marks=pytest.mark.slow),
        pytest.param(THREE, 12, 1.5, DR, marks=pytest.mark.slow),
        pytest.param(THREE, 12, 3.0, {"ratio": "sequence"}, marks=pytest.mark.slow),
    ],
    ids=["grpo-one", "dr_grpo-one", "grpo-three", "dr_grpo-three", "gspo-three"],
    indirect=["problem"],
)
def test_grpo_ends_at_its_fixed_point(
    problem: Problem, k: int, beta: float, options: dict[str, Any]
) -> None:
    wanted = fixed_point(
        problem, k, beta, "deviation" if options.get("scale_by_std", True) else "none"
    )
    found = align(
        problem,
        "grpo",
        {"kl_coefficient": beta, **options},
        32,
        k,
        iterations=40,
        epochs=2,
        learning_rate=3e-3,
    )
    check(found, wanted, problem.reference)


@pytest.mark.parametrize(
    ("problem", "beta", "iterations"),
    [(ONE, 0.25, 24), pytest.param(THREE, 1.0, 40, marks=pytest.mark.slow)],
    ids=["one", "three"],
    indirect=["problem"],
)
def test_rloo_reaches_the_optimum(problem: Problem, beta: float, iterations: int) -> None:
    found = align(problem, "rloo", {"kl_coefficient": beta}, 64, 4, iterations=iterations, epochs=3)
    check(found, problem.optimum(beta), problem.reference)


CENTERED = {"whiten_advantages": False, "group_baseline": True}


# Whitening takes a constant off and divides by one, which moves no optimum.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "beta", "options", "rate"),
    [
        (ONE, 0.25, {}, 5e-3),
        (ONE, 0.5, CENTERED, 5e-3),
        (THREE, 1.0, CENTERED, 8e-3),
    ],
    ids=["one-whitened", "one", "three"],
    indirect=["problem"],
)
def test_reinforce_pp_reaches_the_optimum(
    problem: Problem, beta: float, options: dict[str, Any], rate: float
) -> None:
    options = {"kl_coefficient": beta, **options}
    found = align(
        problem, "reinforce_pp", options, 4, 64, iterations=40, epochs=3, learning_rate=rate
    )
    check(found, problem.optimum(beta), problem.reference)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "beta", "prompts", "rate"),
    [(ONE, 0.5, 6, 3e-3), (THREE, 1.0, 4, 5e-3)],
    ids=["one", "three"],
    indirect=["problem"],
)
def test_online_dpo_reaches_the_optimum(
    problem: Problem, beta: float, prompts: int, rate: float
) -> None:
    """Labels are drawn as people's would be: with P = sigma(difference of the rewards)."""
    options = {"beta": beta, "pairs": "all", "labels": "bradley_terry"}
    found = align(
        problem, "online_dpo", options, prompts, 64, iterations=40, epochs=2, learning_rate=rate
    )
    check(found, problem.optimum(beta), problem.reference)


# --- self-training: what is learned is the distribution of what was selected


def restricted(problem: Problem, kept: Tensor) -> Tensor:
    """The reference with these weights on the answers."""
    mass = problem.reference * kept
    return mass / mass.sum()


def above(problem: Problem, threshold: float) -> Tensor:
    return restricted(problem, (problem.rewards > threshold).double())


def above_quantile(problem: Problem, share: float) -> Tensor:
    """The reference's samples whose reward is above this quantile of the rewards."""
    order = problem.rewards.argsort()
    return above(
        problem, float(problem.rewards[order][problem.reference[order].cumsum(0) >= share][0])
    )


def top_share(problem: Problem, k: int) -> Tensor:
    """The best 1/k of the reference's samples; of the answer at the edge as much as fits."""
    order = problem.rewards.argsort(descending=True)
    better = problem.reference[order].cumsum(0) - problem.reference[order]
    kept = torch.empty_like(better)
    kept[order] = (1 / k - better).clamp(min=0) / problem.reference[order]
    return restricted(problem, kept.clamp(max=1))


def sampled(problem: Problem) -> Tensor:
    """The answers of the run's only iteration, in order: [N] places in `problem.answers`."""
    groups = read_groups(problem.folder / "run" / "trained" / "rollouts" / "0001.jsonl")
    return torch.tensor(
        [problem.answers.index(response.text) for group in groups for response in group.responses]
    )


def selected(problem: Problem, algorithm: str, options: Mapping[str, Any]) -> Tensor:
    """The distribution of those samples that the method learns at last."""
    answers = sampled(problem)
    rewards = problem.rewards[answers]
    if algorithm == "rest":
        kept = rewards > torch.quantile(rewards, options["thresholds"][-1])
    elif algorithm == "expert_iteration":
        kept = rewards > options["threshold"]
    else:
        kept = rewards.argsort(descending=True, stable=True).argsort() < len(rewards) // 4
    return torch.bincount(answers[kept], minlength=len(problem.answers)).double() / kept.sum()


SELECTIONS: dict[str, tuple[dict[str, Any], Callable[[Problem], Tensor]]] = {
    "rest": (
        {"thresholds": [0.05, 0.4], "lr_decay": 0.5},
        lambda problem: above_quantile(problem, 0.4),
    ),
    "expert_iteration": ({"threshold": -0.6}, lambda problem: above(problem, -0.6)),
    "rejection_sampling": ({"pool": "batch"}, lambda problem: top_share(problem, 4)),
}


@pytest.mark.parametrize(
    "algorithm",
    [
        "rest",
        *(pytest.param(name, marks=pytest.mark.slow) for name in SELECTIONS if name != "rest"),
    ],
)
@pytest.mark.parametrize(
    "problem",
    [pytest.param(ONE, marks=pytest.mark.slow), THREE],
    ids=["one", "three"],
    indirect=["problem"],
)
def test_self_training_learns_what_it_selects(problem: Problem, algorithm: str) -> None:
    options, target = SELECTIONS[algorithm]
    epochs = 60 if algorithm == "rest" else 100  # ReST's two steps have so many each
    memory = {"optimizer": {"adamw": {"max_grad_norm": 10.0}}}
    found = align(problem, algorithm, options, 200, 4, iterations=1, epochs=epochs, **memory)
    wanted = selected(problem, algorithm, options)
    # What is learned is the distribution of the samples that were selected, which is the theory's
    # but for chance.
    assert total_variation(wanted, target(problem)) < 0.1
    check(found, wanted, problem.reference)
