"""Training ends where the theory says: on answers few enough to enumerate, whole recipes against
closed forms.

KL-regularised reward has one optimum, pi_ref exp(r / beta) / Z, for PPO, RLOO and REINFORCE++ as for
DPO (Rafailov et al. 2023, eq. 4). GRPO's is another: its KL is a loss whose gradient is that of
KL(pi_ref || pi), and dividing by the group's deviation rescales beta; where its expected update
vanishes is solved for here. Self-training learns the distribution of what it selects. A wrong sign,
a mask off by one, a temperature or KL term in the wrong place ends elsewhere. Distributions come
from the saved model by its own forward, over the whole vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations, combinations_with_replacement
from math import factorial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.optimize import linprog
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from alignkit import Group, Pair, Response
from alignkit.data.group import read_groups, write_groups
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import run_recipe
from benchmarks.papers.enumerable import (
    Problem,
    best_of,
    make,
    preferences,
    tilted,
    write_prompts,
    write_reward,
)
from tests.by_hand import asked, double
from tests.rows import write_recipe

WITHIN = 0.02  # total variation
pytestmark = pytest.mark.usefixtures("one_thread")


# One letter, and three: tokens before and after another, values and KL that add up over them.
# `flat` is nearer to uniform: without a reference there is less way to go.
PROBLEMS: dict[str, tuple[str, int, float]] = {
    "one": ("abcdef", 1, 1.0),
    "two": ("ab", 3, 1.0),
    "three": ("abc", 3, 1.0),
    "flat": ("abc", 3, 0.3),
}


@pytest.fixture
def one(tmp_path: Path) -> Problem:
    return make(tmp_path, *PROBLEMS["one"])


def total_variation(p: Tensor, q: Tensor) -> float:
    return float((p - q).abs().sum() / 2)


def train(problem: Problem, **stages: Mapping[str, Any]) -> Tensor:
    """Run a recipe of these stages; gives the last one's distribution."""
    model = {"base": str(problem.base), "dtype": "float32", "lora": "none"}
    seldom = {name: {"checkpoint_every": 10_000, **stage} for name, stage in stages.items()}
    recipe = write_recipe(problem.folder, json.loads(json.dumps(seldom)), model)
    run_recipe(load_recipe(recipe), problem.folder / "run")
    return problem.distribution(problem.folder / "run" / list(stages)[-1] / "adapter")


def check(found: Tensor, wanted: Tensor, reference: Tensor) -> None:
    assert total_variation(reference, wanted) > 0.1  # there was something to learn
    distance = total_variation(found, wanted)
    print(f"total variation {total_variation(reference, wanted):.3f} before, {distance:.4f} after")
    assert distance < WITHIN


def rollout(problem: Problem, samples: int) -> dict[str, Any]:
    n = problem.length
    return {"samples_per_prompt": samples, "min_new_tokens": n, "max_new_tokens": n}


# A short memory suits advantages that vanish.
STEPS = yaml.safe_load("""
learning_rate: 0.005
optimizer: {adamw: {betas: [0.5, 0.9], max_grad_norm: 10.0}}
""")


def align(problem: Problem, algorithm: Any, prompts: int, samples: int, **more: Any) -> Tensor:
    """The policy after a stage that learns from `prompts` groups of `samples` in each iteration,
    all in one batch.
    """
    stage = {
        "algorithm": algorithm,
        "prompts": write_prompts(problem, prompts),
        "reward": write_reward(problem),
        "rollout": rollout(problem, samples),
        "prompts_per_iteration": prompts,
        "batch_size": prompts,
        **STEPS,
    }
    return train(problem, trained=stage | more)


# Where they end


def shifted(problem: Problem, beta: float, smoothing: float) -> Tensor:
    """Of cDPO. The least of -q log sigma(h) - (1 - q) log sigma(-h) is at h = logit(q), where q is
    p after the flips; for pairs with the first answer only, none follows from others.
    """
    p = preferences(problem)[0]
    lead = torch.logit((1 - smoothing) * p + smoothing * (1 - p)) / beta
    lead[0] = 0.0  # of the first answer over itself
    return torch.softmax(problem.reference.log() - lead, -1)


def of_wins(problem: Problem, tau: float) -> Tensor:
    """Of IPO, pi_ref exp(E_{y' ~ mu} P(y > y') / tau) (Azar et al. 2023), for mu of `weighted`."""
    mu = 1.0 + torch.arange(len(problem.answers), dtype=torch.float64) % 2
    wins = preferences(problem) @ (mu / mu.sum())
    return torch.softmax(problem.reference.log() + wins / tau, -1)


def maximum_entropy(problem: Problem, alpha: float, gamma: float) -> Tensor:
    """Of CPL: the policy with sum_t gamma^t alpha log pi(a_t) = reward - constant for every answer:
    soft values, backwards.
    """
    values = problem.rewards.reshape([len(problem.letters)] * problem.length)
    policy = torch.zeros((), dtype=torch.float64)
    for t in reversed(range(problem.length)):
        scale = alpha * gamma**t
        soft = scale * torch.logsumexp(values / scale, dim=-1)
        step = (values - soft[..., None]) / scale  # log pi(a_t | tokens before)
        policy = step.reshape(step.shape + (1,) * (policy.dim() - step.dim())) + policy
        values = soft
    return policy.flatten().exp()


def simpo(b: Tensor, w: Tensor, p: Tensor) -> Tensor:
    return -(p * logsigmoid(2 * (b - w) / 3 - 0.5) + (1 - p) * logsigmoid(2 * (w - b) / 3 - 0.5))


def orpo(b: Tensor, w: Tensor, p: Tensor) -> Tensor:
    b, w = b / 3, w / 3
    h = b - w - torch.log1p(-b.exp()) + torch.log1p(-w.exp())
    return -(0.7 * (p * logsigmoid(h) + (1 - p) * logsigmoid(-h)) + p * b + (1 - p) * w)


def cpo(b: Tensor, w: Tensor, p: Tensor) -> Tensor:
    h = 0.5 * (b - w)
    return -(p * logsigmoid(h) + (1 - p) * logsigmoid(-h) + 0.2 * (p * b + (1 - p) * w))


def least(problem: Problem, expected: str) -> Tensor:
    """The distribution of least expected loss, over all distributions of answers: found by another
    optimizer over a plain table of probabilities.
    """
    i, j = torch.tensor(every(problem)).T
    p, loss = preferences(problem)[i, j], {"simpo": simpo, "orpo": orpo, "cpo": cpo}[expected]
    logits = problem.reference.log().requires_grad_()
    options: Any = {"max_iter": 2000, "tolerance_grad": 1e-10, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([logits], **options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        logprobs = torch.log_softmax(logits, -1)
        value = loss(logprobs[i], logprobs[j], p).mean()
        value.backward()
        return value

    optimizer.step(closure)
    assert logits.grad is not None and float(logits.grad.norm()) < 1e-5
    return torch.softmax(logits.detach(), -1)


def by_prefix(x: Tensor, problem: Problem) -> list[Tensor]:
    """Sums of x [answers] over all answers that begin with each 1, 2, ... letters: [n], [n, n],
    ...
    """
    n = len(problem.letters)
    return [x.reshape([n] * (t + 1) + [-1]).sum(-1) for t in range(problem.length)]


def whole(steps: list[Tensor]) -> Tensor:
    """The distribution over answers with these probabilities of the next letter."""
    p = torch.ones((), dtype=torch.float64)
    for step in steps:
        p = p.unsqueeze(-1) * step
    return p.flatten()


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
    answers = len(problem.rewards)
    reference = [x / x.sum(-1, keepdim=True) for x in by_prefix(problem.reference, problem)]
    members = torch.tensor(list(combinations_with_replacement(range(answers), k)))
    counts = torch.nn.functional.one_hot(members, answers).sum(1).double()
    factorials = double([factorial(n) for n in range(k + 1)])
    orders = factorials[k] / factorials[counts.long()].prod(1)
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
            pull = (gain - steps[t] * gain.sum(-1, keepdim=True)) / passing
            surprise = -steps[t].log()
            mean_surprise = (steps[t] * surprise).sum(-1, keepdim=True)
            pull += beta * (reference[t] - steps[t])
            pull += entropy * steps[t] * (surprise - mean_surprise)
            residual = max(residual, float(pull.abs().max()))
            steps[t] = torch.softmax(steps[t].log() + pull / beta, -1)
        if residual < 1e-8:
            return whole(steps)
    raise AssertionError(f"no fixed point: {residual}")


OPTIMA: dict[str, Callable[..., Tensor]] = {
    f.__name__: f for f in (tilted, shifted, of_wins, maximum_entropy, least, fixed_point)
}


# The tables. Rows that are not marked run in `make test`.


def table(text: str) -> list[Any]:
    rows = []
    for name, row in yaml.safe_load(text)["rows"].items():
        marks = [pytest.mark.slow] if row.pop("slow", False) else []
        rows.append(pytest.param(row, id=name, marks=marks))
    return rows


# With the whole return (lambda 1) every advantage is 0 at PPO's optimum, so a falling learning rate
# ends on it and not near it. Whitening takes a constant off and divides by one, which moves no
# optimum. A token's GSPO is GRPO; of three tokens it has one ratio. On its own samples CISPO's
# expected gradient is the plain policy gradient.
ROLLOUTS = """
ppo: &ppo {lam: 1.0, whiten_advantages: false, value_clip_range: null, value_coefficient: 1.0}
plain: &plain {whiten_advantages: false, group_baseline: true}
dr: &dr {scale_by_std: false, aggregation: constant_length, max_tokens: 7}
grpo: &grpo {iterations: 40, epochs: 2, learning_rate: 0.003}
rows:
  ppo-one:
    {problem: one, ends: {tilted: [0.25]}, groups: [2, 128], slow: true, iterations: 40, epochs: 4,
     algorithm: {ppo: {<<: *ppo, kl_coefficient: 0.25}}}
  ppo-three:
    {problem: three, ends: {tilted: [0.5]}, groups: [2, 128], slow: true, iterations: 80, epochs: 3,
     algorithm: {ppo: {<<: *ppo, kl_coefficient: 0.5}}}
  ppo-at-its-temperature:
    {problem: one, ends: {tilted: [0.25]}, groups: [64, 4], slow: true, iterations: 40, epochs: 4,
     temperature: 0.6, algorithm: {ppo: {<<: *ppo, kl_coefficient: 0.25}}}
  rloo-one:
    {problem: one, ends: {tilted: [0.25]}, groups: [64, 4], iterations: 24, epochs: 3,
     algorithm: {rloo: {kl_coefficient: 0.25}}}
  rloo-two:
    {problem: two, ends: {tilted: [1.0]}, groups: [64, 4], slow: true, iterations: 40, epochs: 3,
     algorithm: {rloo: {kl_coefficient: 1.0}}}
  reinforce_pp-whitened:
    {problem: one, ends: {tilted: [0.25]}, groups: [4, 64], slow: true, iterations: 40, epochs: 3,
     algorithm: {reinforce_pp: {kl_coefficient: 0.25}}}
  reinforce_pp-two:
    {problem: two, ends: {tilted: [1.0]}, groups: [4, 64], slow: true, iterations: 40, epochs: 3,
     learning_rate: 0.008, algorithm: {reinforce_pp: {<<: *plain, kl_coefficient: 1.0}}}
  online_dpo-one:
    {problem: one, ends: {tilted: [0.5]}, groups: [6, 64], slow: true, <<: *grpo,
     algorithm: {online_dpo: {beta: 0.5, pairs: all, labels: bradley_terry}}}
  online_dpo-two:
    {problem: two, ends: {tilted: [1.0]}, groups: [4, 64], slow: true, iterations: 40, epochs: 2,
     algorithm: {online_dpo: {beta: 1.0, pairs: all, labels: bradley_terry}}}
  grpo-one:
    {problem: one, ends: {fixed_point: [8, 1.0, deviation]}, groups: [32, 8], <<: *grpo,
     algorithm: {grpo: {kl_coefficient: 1.0}}}
  grpo-two:
    {problem: two, ends: {fixed_point: [12, 3.0, deviation]}, groups: [32, 12], slow: true, <<: *grpo,
     algorithm: {grpo: {kl_coefficient: 3.0}}}
  gspo-two:
    {problem: two, ends: {fixed_point: [12, 3.0, deviation]}, groups: [32, 12], slow: true, <<: *grpo,
     algorithm: {grpo: {kl_coefficient: 3.0, ratio: sequence}}}
  dr_grpo-one:
    {problem: one, ends: {fixed_point: [8, 0.5]}, groups: [32, 8], slow: true, <<: *grpo,
     algorithm: {grpo: {<<: *dr, kl_coefficient: 0.5}}}
  dr_grpo-two:
    {problem: two, ends: {fixed_point: [12, 1.5]}, groups: [32, 12], slow: true, <<: *grpo,
     algorithm: {grpo: {<<: *dr, kl_coefficient: 1.5}}}
  cispo-two:
    {problem: two, ends: {fixed_point: [12, 1.5]}, groups: [32, 12], slow: true, <<: *grpo,
     algorithm: {grpo: {kl_coefficient: 1.5, scale_by_std: false, policy_loss: cispo,
                        clip_range_high: 4.0}}}
  maxrl-one:
    {problem: one, ends: {fixed_point: [4, 1.0, mean]}, groups: [64, 4], slow: true, <<: *grpo,
     right_or_wrong: true, algorithm: {grpo: {kl_coefficient: 1.0, scale_by_mean: true}}}
  entropy-one:
    {problem: one, ends: {fixed_point: [8, 0.5, none, 0.3]}, groups: [32, 8], slow: true, <<: *grpo,
     algorithm: {grpo: {kl_coefficient: 0.5, scale_by_std: false, entropy_coefficient: 0.3}}}
"""


@pytest.mark.parametrize("row", table(ROLLOUTS))
def test_rollouts_end_at_the_optimum(row: dict[str, Any], tmp_path: Path) -> None:
    """At a temperature, P(letter) is P ** (1 / temperature), normalized."""
    problem = make(tmp_path, *PROBLEMS[row.pop("problem")])
    temperature, (prompts, samples) = row.pop("temperature", 1.0), row.pop("groups")
    ((optimum, arguments),) = row.pop("ends").items()
    if row.pop("right_or_wrong", False):
        problem.__dict__["rewards"] = (problem.rewards > 0.0).double()  # a cached property
    problem.__dict__["reference"] = torch.softmax(problem.reference.log() / temperature, -1)
    sampling = {**rollout(problem, samples), "temperature": temperature}
    found = align(problem, row.pop("algorithm"), prompts, samples, rollout=sampling, **row)
    found = torch.softmax(found.log() / temperature, -1)
    check(found, OPTIMA[optimum](problem, *arguments), problem.reference)


def every(problem: Problem) -> list[tuple[int, int]]:
    return list(combinations(range(len(problem.answers)), 2))


def first(problem: Problem) -> list[tuple[int, int]]:
    return [(0, j) for j in range(1, len(problem.answers))]


def weighted(problem: Problem) -> list[tuple[int, int]]:
    """Drawn from mu x mu, where answer i has 1 + i % 2 parts of mu."""
    return [(i, j) for i, j in every(problem) for _ in range((1 + i % 2) * (1 + j % 2))]


# Of means over tokens a nat is three of the sum of three tokens. Hinge, SimPO, ORPO and CPO have no
# closed form.
PAIRS = """
rows:
  dpo: {problem: three, ends: {tilted: [0.5]}, algorithm: {dpo: {beta: 0.5}}}
  dpo-norm: {problem: flat, ends: {tilted: [0.5]}, algorithm: {dpo: {beta: 1.5, loss: sigmoid_norm}}}
  cdpo-one:
    {problem: one, ends: {shifted: [0.25, 0.2]}, pairs: first, slow: true,
     algorithm: {dpo: {beta: 0.25, label_smoothing: 0.2}}}
  cdpo-flat:
    {problem: flat, ends: {shifted: [0.5, 0.2]}, pairs: first, slow: true,
     algorithm: {dpo: {beta: 0.5, label_smoothing: 0.2}}}
  robust-undoes-flips:
    {problem: one, ends: {tilted: [0.5]}, flipped: 0.2, slow: true,
     algorithm: {dpo: {beta: 0.5, loss: robust, label_smoothing: 0.2}}}
  ipo-one:
    {problem: one, ends: {of_wins: [0.1]}, pairs: weighted, algorithm: {dpo: {beta: 0.1, loss: ipo}}}
  ipo-three:
    {problem: three, ends: {of_wins: [0.25]}, pairs: weighted, slow: true,
     algorithm: {dpo: {beta: 0.25, loss: ipo}}}
  ipo-norm:
    {problem: flat, ends: {of_wins: [0.16666666667]}, pairs: weighted, slow: true,
     algorithm: {dpo: {beta: 0.5, loss: ipo_norm}}}
  cpl-with-a-reference:
    {problem: three, ends: {tilted: [0.5]}, slow: true,
     algorithm: {cpl: {alpha: 0.5, conservative_weight: 1.0, reference: true}}}
  cpl-one:
    {problem: one, ends: {maximum_entropy: [0.5, 1.0]}, slow: true,
     algorithm: {cpl: {alpha: 0.5, conservative_weight: 1.0}}}
  cpl-flat:
    {problem: flat, ends: {maximum_entropy: [1.0, 0.7]},
     algorithm: {cpl: {alpha: 1.0, gamma: 0.7, conservative_weight: 1.0}}}
  simpo:
    {problem: flat, ends: {least: [simpo]}, algorithm: {simpo: {beta: 2.0, target_margin: 0.5}}}
  orpo:
    {problem: flat, ends: {least: [orpo]}, slow: true,
     algorithm: {orpo: {odds_ratio_coefficient: 0.7}}}
  cpo:
    {problem: flat, ends: {least: [cpo]}, slow: true,
     algorithm: {cpo: {beta: 0.5, nll_coefficient: 0.2}}}
"""


def learn(
    problem: Problem, algorithm: Any, pairs: list[tuple[int, int]], flipped: float = 0.0
) -> Tensor:
    """Train on all answers with these pairs in every step, with soft labels."""
    p = preferences(problem)
    p = (1 - flipped) * p + flipped * (1 - p)
    responses = [Response(a, tokens=problem.ids(a), truncated=True) for a in problem.answers]
    labelled = [Pair(i, j, p=float(p[i, j])) for i, j in pairs]
    group = Group(asked("?"), tuple(responses), tuple(labelled))
    write_groups(problem.folder / "pairs.jsonl", [replace(group, id=str(i)) for i in range(40)])
    stage = yaml.safe_load("""
    data: {path: pairs.jsonl}
    batch_size: 1
    learning_rate: 0.01
    optimizer: {adamw: {betas: [0.9, 0.95]}}  # the gradient has no noise
    """)
    epochs = 3 if problem.length == 1 else 6
    return train(problem, trained={"algorithm": algorithm, "epochs": epochs, **stage})


@pytest.mark.parametrize("row", table(PAIRS))
def test_pairs_end_at_the_optimum(row: dict[str, Any], tmp_path: Path) -> None:
    problem = make(tmp_path, *PROBLEMS[row["problem"]])
    choose = {"every": every, "first": first, "weighted": weighted}[row.get("pairs", "every")]
    found = learn(problem, row["algorithm"], choose(problem), row.get("flipped", 0.0))
    ((optimum, arguments),) = row["ends"].items()
    check(found, OPTIMA[optimum](problem, *arguments), problem.reference)


@pytest.mark.slow
def test_hinge_ends_at_the_least_loss(one: Problem) -> None:
    """A linear programme, flat along edges: the loss is compared, not the distribution. Unknown are
    h [answers], and for each pair what its margin lacks for one label and for the other.
    """
    beta, pairs = 0.5, every(one)
    i, j = torch.tensor(pairs).T
    p, zero, unit = preferences(one)[i, j], np.zeros((len(pairs), len(pairs))), np.eye(len(pairs))
    over = np.eye(len(one.answers))[i] - np.eye(len(one.answers))[j]

    def loss(policy: Tensor) -> float:
        h = torch.from_numpy(over) @ (beta * (policy.log() - one.reference.log()))
        return float((p * relu(1 - h) + (1 - p) * relu(1 + h)).mean())

    price = np.concatenate([np.zeros(len(one.answers)), p / len(pairs), (1 - p) / len(pairs)])
    lacks = np.block([[-over, -unit, zero], [over, zero, -unit]])
    bounds = [(None, None)] * len(one.answers) + [(0, None)] * (2 * len(pairs))
    best = linprog(price, A_ub=lacks, b_ub=-np.ones(len(lacks)), bounds=bounds).fun
    found = learn(one, {"dpo": {"beta": beta, "loss": "hinge"}}, pairs)
    assert best <= loss(found) < best + 0.02 * (loss(one.reference) - best)


# Self-training: what is learned is the distribution of what was selected


def above_quantile(problem: Problem, share: float) -> Tensor:
    """The reference's samples whose reward is above this quantile of the rewards."""
    order = problem.rewards.argsort()
    threshold = problem.rewards[order][problem.reference[order].cumsum(0) >= share][0]
    mass = problem.reference * (problem.rewards > threshold)
    return mass / mass.sum()


# algorithm, its optimum, and which of the rewards [prompts, 4] it selects
SELECTIONS: dict[str, tuple[Any, Callable[[Problem], Tensor], Callable[[Tensor], Tensor]]] = {
    "rest": (
        {"rest": {"thresholds": [0.05, 0.4], "lr_decay": 0.5}},
        lambda problem: above_quantile(problem, 0.4),
        lambda rewards: rewards > torch.quantile(rewards, 0.4),
    ),
    "best_of_four": (
        {"rejection_sampling": {"replay_ratio": 0}},
        lambda problem: best_of(problem.reference, problem.rewards, 4),
        lambda rewards: torch.nn.functional.one_hot(rewards.argmax(1), 4) > 0,
    ),
}


@pytest.mark.parametrize(
    ("name", "on"), [("rest", "two"), pytest.param("best_of_four", "one", marks=pytest.mark.slow)]
)
def test_self_training_learns_what_it_selects(name: str, on: str, tmp_path: Path) -> None:
    problem = make(tmp_path, *PROBLEMS[on])
    algorithm, target, selects = SELECTIONS[name]
    epochs = 60 if name == "rest" else 100  # ReST's two steps have so many each
    memory = {"adamw": {"max_grad_norm": 10.0}}
    found = align(problem, algorithm, 200, 4, iterations=1, epochs=epochs, optimizer=memory)
    rows = [[response.text for response in group.responses] for group in samples_of(problem)]
    answers = torch.tensor([[problem.answers.index(text) for text in row] for row in rows])
    kept = selects(problem.rewards[answers])
    count = torch.bincount(answers[kept], minlength=len(problem.answers))
    wanted = count.double() / kept.sum()
    # The theory's but for chance
    assert total_variation(wanted, target(problem)) < 0.1
    check(found, wanted, problem.reference)


def samples_of(problem: Problem) -> list[Group]:
    """Of the run's only iteration."""
    return read_groups(problem.folder / "run" / "trained" / "rollouts" / "0001.jsonl")


# A constraint


def constrained(problem: Problem, cost: Tensor, beta: float, rescale: bool) -> tuple[Tensor, float]:
    """The policy with the highest r - beta KL among those whose mean cost is at most 0.4, and its
    lambda.

    It is pi_ref exp((r - lambda c) / beta) / Z, and its mean cost falls in lambda, so lambda is
    found by bisection. With the reward divided by 1 + lambda, the KL weighs (1 + lambda) times as
    much.
    """

    def policy(multiplier: float) -> Tensor:
        scale = beta * (1 + multiplier) if rescale else beta
        return torch.softmax(
            problem.reference.log() + (problem.rewards - multiplier * cost) / scale, -1
        )

    low, high = 0.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        if float((policy(middle) * cost).sum()) > 0.4:
            low = middle
        else:
            high = middle
    return policy(high), high


@pytest.mark.slow
@pytest.mark.usefixtures("combinations")
@pytest.mark.parametrize(("on", "beta", "rescale"), [("one", 0.25, True), ("two", 0.5, False)])
def test_ppo_under_a_constraint(on: str, beta: float, rescale: bool, tmp_path: Path) -> None:
    problem = make(tmp_path, *PROBLEMS[on])
    noise = torch.rand(
        len(problem.answers), generator=torch.Generator().manual_seed(9), dtype=torch.float64
    )
    cost = 0.5 * (problem.rewards + 1) + 0.5 * noise  # good answers tend to cost more
    wanted, multiplier = constrained(problem, cost, beta, rescale)
    free = tilted(problem, beta)
    assert float((free * cost).sum()) > 0.45 and multiplier > 0.2  # the limit binds
    assert total_variation(wanted, free) > 0.1
    lagrangian = {
        "reward": write_reward(problem),
        "cost": write_reward(problem, "cost", cost),
        "limit": 0.4,
        "multiplier": 0.0,
        "multiplier_rate": 2.0,
        "rescale": rescale,
    }
    options = yaml.safe_load(ROLLOUTS)["ppo"] | {"kl_coefficient": beta}
    found = align(
        problem,
        {"ppo": options},
        2,
        192,
        reward={"lagrangian": lagrangian},
        iterations=50,
        epochs=4,
    )
    check(found, wanted, problem.reference)
    lines = (problem.folder / "run/trained/metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["reward/multiplier"] == pytest.approx(multiplier, rel=0.15)


# Thumbs and instructions


def test_kto_moves_probability_to_what_most_find_desirable(one: Problem) -> None:
    """No optimum inside: sigma(beta (log ratio - z0)) of every answer only falls or only rises,
    until others have no probability left to give. So only the direction is tested.
    """
    up, groups = [8, 2, 3, 7, 9, 1], []  # thumbs up of ten
    for n in range(60):
        answer = one.answers[n // 10]
        label = n % 10 < up[n // 10]
        response = Response(answer, tokens=one.ids(answer), truncated=True, label=label)
        groups.append(Group(asked(str(n)), (response,), id=str(n)))
    write_groups(one.folder / "thumbs.jsonl", groups)
    stage = """
    {data: {path: thumbs.jsonl}, batch_size: 30, epochs: 30, learning_rate: 0.01,
     algorithm: {kto: {beta: 0.5}}}
    """
    found = train(one, trained=yaml.safe_load(stage))
    disliked = torch.tensor(up) < 5
    assert (found < one.reference)[disliked].all()
    assert float(one.reference[disliked].sum()) > 0.5 and float(found[disliked].sum()) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1.0, 0.0])
def test_hir_learns_what_fulfils_each_instruction(tmp_path: Path, alpha: float) -> None:
    """Relabelled samples of an instruction are those that fulfil it, in the policy's own
    proportions, so that is what NLL learns. The contrast, which has no optimum of its own, has
    nothing against it: P under the other one is 0. Instructions are tokens that nobody writes.
    """
    problem = make(tmp_path, "abcdef", 1, others="GB")
    options = {"instructions": ["B", "G"], "thresholds": [0.0], "entropy_coefficient": 0.0}
    algorithm = {"hir": {**options, "contrast_coefficient": alpha}}
    more: dict[str, Any] = {"iterations": 1, "epochs": 60, "learning_rate": 1e-2, "batch_size": 32}
    align(problem, algorithm, 16, 64, optimizer="adamw", **more)
    texts = [response.text for group in samples_of(problem) for response in group.responses]
    count = double([texts.count(answer) for answer in problem.answers])
    assert total_variation(count / len(texts), problem.reference) < 0.05
    good = problem.rewards > 0
    for token, fulfils in ((9, good), (10, ~good)):
        found = problem.distribution(problem.folder / "run/trained/adapter", (token, 2))
        wanted = count * fulfils
        check(found, wanted / wanted.sum(), problem.reference)
