"""Variants of GRPO and combinations of rewards end where their theory says, on answers few enough
to enumerate.

MaxRL and the entropy bonus move GRPO's fixed point, which is solved for as in
test_optimum_online.py. A Lagrangian ends at the KL-regularized optimum of r - lambda * c, with the
lambda at which the mean cost is the limit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_optimum import (
    Problem,
    check,
    make,
    rollout,
    total_variation,
    train,
    write_prompts,
    write_reward,
)
from test_optimum_online import ONE, THREE, align, fixed_point
from torch import Tensor

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def problem(request: pytest.FixtureRequest, tmp_path: Path) -> Problem:
    letters, length = request.param
    return make(tmp_path, letters, length)


# --- variants of GRPO


@pytest.mark.parametrize("problem", [ONE], ids=["one"], indirect=True)
def test_maxrl_ends_at_its_fixed_point(problem: Problem) -> None:
    """With rewards of 0 and 1, dividing by the mean weighs a prompt by 1 / p, and by the deviation
    by less.
    """
    problem.__dict__["rewards"] = (problem.rewards > 0.0).double()  # a cached property
    wanted = fixed_point(problem, 4, 1.0, "mean")
    assert total_variation(wanted, fixed_point(problem, 4, 1.0, "deviation")) > 0.04
    options = {"kl_coefficient": 1.0, "scale_by_mean": True}
    found = align(problem, "grpo", options, 64, 4, iterations=40, epochs=2, learning_rate=3e-3)
    check(found, wanted, problem.reference)


@pytest.mark.parametrize("problem", [ONE], ids=["one"], indirect=True)
def test_an_entropy_bonus_ends_at_its_fixed_point(problem: Problem) -> None:
    wanted = fixed_point(problem, 8, 0.5, "none", entropy=0.3)
    assert total_variation(wanted, fixed_point(problem, 8, 0.5, "none")) > 0.04
    options = {"kl_coefficient": 0.5, "scale_by_std": False, "entropy_coefficient": 0.3}
    found = align(problem, "grpo", options, 32, 8, iterations=40, epochs=2, learning_rate=3e-3)
    check(found, wanted, problem.reference)


@pytest.mark.parametrize("problem", [THREE], ids=["three"], indirect=True)
def test_cispo_has_the_fixed_point_of_grpo(problem: Problem) -> None:
    """On its own samples CISPO's expected gradient is the plain policy gradient, as GRPO's is."""
    k, beta = 12, 1.5
    wanted = fixed_point(problem, k, beta, "none")
    options = {
        "kl_coefficient": beta,
        "scale_by_std": False,
        "policy_loss": "cispo",
        "clip_range_high": 4.0,
    }
    found = align(problem, "grpo", options, 32, k, iterations=40, epochs=2, learning_rate=3e-3)
    check(found, wanted, problem.reference)


# --- a constraint


def costs(problem: Problem) -> Tensor:
    """Good answers tend to cost more."""
    noise = torch.rand(
        len(problem.answers), generator=torch.Generator().manual_seed(9), dtype=torch.float64
    )
    return 0.5 * (problem.rewards + 1) + 0.5 * noise


def constrained(problem: Problem, beta: float, limit: float, rescale: bool) -> tuple[Tensor, float]:
    """The policy with the highest r - beta KL among those whose mean cost is at most the limit, and
    its lambda.

    It is pi_ref exp((r - lambda c) / beta) / Z, and its mean cost falls in lambda, so lambda is
    found by bisection. With the reward divided by 1 + lambda, the KL weighs (1 + lambda) times as
    much.
    """
    cost = costs(problem)

    def policy(multiplier: float) -> Tensor:
        scale = beta * (1 + multiplier) if rescale else beta
        return torch.softmax(
            problem.reference.log() + (problem.rewards - multiplier * cost) / scale, -1
        )

    low, high = 0.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if float((policy(middle) * cost).sum()) > limit else (low, middle)
        )
    return policy(high), high


@pytest.mark.usefixtures("combinations")
@pytest.mark.parametrize(
    ("problem", "beta", "limit", "rescale"),
    [(ONE, 0.25, 0.4, True), (THREE, 0.5, 0.4, False)],
    ids=["one-rescaled", "three"],
    indirect=["problem"],
)
def test_ppo_under_a_constraint(problem: Problem, beta: float, limit: float, rescale: bool) -> None:
    cost = costs(problem)
    wanted, multiplier = constrained(problem, beta, limit, rescale)
    free = problem.optimum(beta)
    assert float((free * cost).sum()) > limit + 0.05 and multiplier > 0.2  # the limit binds
    assert total_variation(wanted, free) > 0.1
    reward = write_reward(problem)
    table = dict(zip(problem.answers, cost.tolist(), strict=True))
    code = (
        f"TABLE = {table!r}\n"
        "\n"
        "def cost(completions):\n"
        "    return [TABLE[text] for text in completions]\n"
    )
    (problem.folder / "cost.py").write_text(code, encoding="utf-8")
    lagrangian: dict[str, Any] = {
        "reward": reward,
        "cost": {"python": {"path": "cost.py", "function": "cost"}},
        "limit": limit,
        "multiplier": 0.0,
        "multiplier_rate": 2.0,
        "rescale": rescale,
    }
    options = {
        "kl_coefficient": beta,
        "lam": 1.0,
        "whiten_advantages": False,
        "value_clip_range": None,
        "value_coefficient": 1.0,
    }
    stage = {
        "algorithm": {"ppo": options},
        "prompts": write_prompts(problem, 2),
        "reward": {"lagrangian": lagrangian},
        "rollout": rollout(problem, 192),
        "iterations": 50,
        "prompts_per_iteration": 2,
        "batch_size": 2,
        "epochs": 4,
        "learning_rate": 5e-3,
        "optimizer": {"adamw": {"betas": [0.5, 0.9], "max_grad_norm": 10.0}},
    }
    found = train(problem, trained=stage)
    rows = [
        json.loads(line)
        for line in (problem.folder / "run/trained/metrics.jsonl").read_text().splitlines()
    ]
    print([round(row["reward/multiplier"], 3) for row in rows][-10:])
    check(found, wanted, problem.reference)
    assert rows[-1]["reward/multiplier"] == pytest.approx(multiplier, rel=0.15)
