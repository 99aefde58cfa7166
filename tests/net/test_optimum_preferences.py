"""Preference methods end where the theory says, on answers few enough to enumerate, through whole
recipes.

Targets are written from the papers' own equations. DPO, cDPO, robust DPO, IPO and CPL have one: a
distribution. Hinge, SimPO, ORPO and CPO have none; there the end must be a stationary point: the
least of the same expected loss, found by another optimizer over a plain table of probabilities. KTO
and HIR's contrast are only tested for their direction.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.optimize import linprog
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
from torch import Tensor
from torch.nn.functional import logsigmoid

from alignkit import Group, Pair, Response
from alignkit.data.group import read_groups, write_groups

COPIES = 40  # of the one group in a data set


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def one(tmp_path: Path) -> Problem:
    return make(tmp_path, "abcdef", 1)


@pytest.fixture
def three(tmp_path: Path) -> Problem:
    return make(tmp_path, "abc", 3)


@pytest.fixture
def flat(tmp_path: Path) -> Problem:
    """Three tokens, and a base that is nearer to uniform: without a reference there is less way to
    go.
    """
    from transformers import PhiForCausalLM

    problem = make(tmp_path, "abc", 3)
    model = PhiForCausalLM.from_pretrained(problem.base)
    with torch.no_grad():
        model.lm_head.weight *= 0.3
    model.save_pretrained(problem.base)
    return problem


@pytest.fixture
def problem(request: pytest.FixtureRequest) -> Problem:
    found: Problem = request.getfixturevalue(request.param)
    return found


def on(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("problem", names, indirect=True)


def preferences(problem: Problem) -> Tensor:
    """P(row is preferred to column) by Bradley-Terry, [answers, answers]."""
    return torch.sigmoid(problem.rewards[:, None] - problem.rewards)


def every_pair(problem: Problem) -> list[tuple[int, int]]:
    return list(combinations(range(len(problem.answers)), 2))


def star(problem: Problem) -> list[tuple[int, int]]:
    """Pairs with the first answer only: any log-odds can be reached, for none follows from
    others.
    """
    return [(0, j) for j in range(1, len(problem.answers))]


def learn(
    problem: Problem, algorithm: Mapping[str, Any], pairs: list[tuple[int, int]], p: Tensor
) -> Tensor:
    """Train on all answers with these pairs in every step, soft labels p[i, j]; gives the learned
    distribution.
    """
    responses = tuple(
        Response(text=a, tokens=problem.ids(a), truncated=True) for a in problem.answers
    )
    labelled = tuple(Pair(i, j, p=float(p[i, j])) for i, j in pairs)
    group = Group(({"role": "user", "content": "?"},), responses, labelled)
    write_groups(problem.folder / "pairs.jsonl", [replace(group, id=str(i)) for i in range(COPIES)])
    stage = {
        "algorithm": algorithm,
        "data": {"path": "pairs.jsonl"},
        "batch_size": 1,
        "epochs": 3 if problem.length == 1 else 6,
        "learning_rate": 1e-2,
        # The gradient has no noise.
        "optimizer": {"adamw": {"betas": [0.9, 0.95]}},
    }
    return train(problem, trained=stage)


# What has a closed form


@pytest.mark.slow
@pytest.mark.parametrize(("problem", "beta"), [("one", 0.25), ("flat", 0.5)], indirect=["problem"])
def test_conservative_dpo_reaches_its_shifted_log_odds(problem: Problem, beta: float) -> None:
    smoothing, p = 0.2, preferences(problem)
    found = learn(problem, {"dpo": {"beta": beta, "label_smoothing": smoothing}}, star(problem), p)
    # The least of -q log sigma(h) - (1 - q) log sigma(-h) is at h = logit(q), where q is p after
    # the flips.
    lead = torch.logit((1 - smoothing) * p[0] + smoothing * (1 - p[0])) / beta
    lead[0] = 0.0  # of the first answer over itself
    check(found, torch.softmax(problem.reference.log() - lead, -1), problem.reference)


@pytest.mark.slow
@on("one")
def test_robust_dpo_undoes_flipped_labels(problem: Problem) -> None:
    beta, flipped = 0.5, 0.2
    p = preferences(problem)
    noisy = (1 - flipped) * p + flipped * (1 - p)
    options = {"beta": beta, "loss": "robust", "label_smoothing": flipped}
    found = learn(problem, {"dpo": options}, every_pair(problem), noisy)
    check(found, problem.optimum(beta), problem.reference)


@pytest.mark.parametrize(
    ("problem", "name", "tau"),
    [
        ("one", "ipo", 0.1),
        pytest.param("three", "ipo", 0.25, marks=pytest.mark.slow),
        pytest.param("flat", "ipo_norm", 0.5, marks=pytest.mark.slow),
    ],
    indirect=["problem"],
)
def test_ipo_reaches_its_own_optimum(problem: Problem, name: str, tau: float) -> None:
    p = preferences(problem)
    # Pairs are drawn from mu x mu, where answer i has 1 + i % 2 parts of mu.
    parts = torch.tensor([1.0 + i % 2 for i in range(len(p))], dtype=torch.float64)
    pairs = [(i, j) for i, j in every_pair(problem) for _ in range(int(parts[i] * parts[j]))]
    found = learn(problem, {"dpo": {"beta": tau, "loss": name}}, pairs, p)
    # Azar et al. 2023: pi_ref exp(E_{y' ~ mu} P(y > y') / tau). Of means over tokens a nat is
    # `length` nats of the sum.
    wins = p @ (parts / parts.sum())
    tau = tau / problem.length if name == "ipo_norm" else tau
    check(found, torch.softmax(problem.reference.log() + wins / tau, -1), problem.reference)


@on("flat")
def test_length_normalized_dpo_reaches_the_optimum_of_a_lower_price(problem: Problem) -> None:
    options = {"beta": 1.5, "loss": "sigmoid_norm"}
    found = learn(problem, {"dpo": options}, every_pair(problem), preferences(problem))
    check(found, problem.optimum(1.5 / problem.length), problem.reference)


@pytest.mark.slow
@on("one", "three")
def test_cpl_with_a_reference_reaches_dpos_optimum(problem: Problem) -> None:
    options = {"alpha": 0.5, "conservative_weight": 1.0, "reference": True}
    found = learn(problem, {"cpl": options}, every_pair(problem), preferences(problem))
    check(found, problem.optimum(0.5), problem.reference)


@pytest.mark.parametrize(
    ("problem", "gamma"),
    [("flat", 0.7), pytest.param("one", 1.0, marks=pytest.mark.slow)],
    indirect=["problem"],
)
def test_cpl_reaches_the_optimal_policy_of_maximum_entropy(problem: Problem, gamma: float) -> None:
    alpha = 0.5 if problem.length == 1 else 1.0
    options = {"alpha": alpha, "gamma": gamma, "conservative_weight": 1.0}
    found = learn(problem, {"cpl": options}, every_pair(problem), preferences(problem))
    check(found, maximum_entropy(problem, alpha, gamma), problem.reference)


def maximum_entropy(problem: Problem, alpha: float, gamma: float) -> Tensor:
    """The policy with sum_t gamma^t alpha log pi(a_t) = reward - constant for every answer: soft
    values, backwards.
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


# What has none: a stationary point of the expected loss

Expected = Callable[[Problem, Tensor, Tensor, Tensor], Tensor]


def simpo(problem: Problem, better: Tensor, worse: Tensor, p: Tensor) -> Tensor:
    h = 2.0 * (better - worse) / problem.length
    return -(p * logsigmoid(h - 0.5) + (1 - p) * logsigmoid(-h - 0.5)).mean()


def orpo(problem: Problem, better: Tensor, worse: Tensor, p: Tensor) -> Tensor:
    b, w = better / problem.length, worse / problem.length
    h = b - w - torch.log1p(-b.exp()) + torch.log1p(-w.exp())
    return -(0.7 * (p * logsigmoid(h) + (1 - p) * logsigmoid(-h)) + p * b + (1 - p) * w).mean()


def cpo(problem: Problem, better: Tensor, worse: Tensor, p: Tensor) -> Tensor:
    h = 0.5 * (better - worse)
    return -(
        p * logsigmoid(h) + (1 - p) * logsigmoid(-h) + 0.2 * (p * better + (1 - p) * worse)
    ).mean()


def least(problem: Problem, expected: Expected) -> Tensor:
    """The distribution of least expected loss, over all distributions of answers."""
    i, j = torch.tensor(every_pair(problem)).T
    p = preferences(problem)[i, j]
    logits = problem.reference.log().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=2000, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logprobs = torch.log_softmax(logits, -1)
        value = expected(problem, logprobs[i], logprobs[j], p)
        value.backward()
        return value

    optimizer.step(closure)
    assert float(logits.grad.norm()) < 1e-5
    return torch.softmax(logits.detach(), -1)


@on("flat")
@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ({"simpo": {"beta": 2.0, "target_margin": 0.5}}, simpo),
        pytest.param({"orpo": {"odds_ratio_coefficient": 0.7}}, orpo, marks=pytest.mark.slow),
        pytest.param({"cpo": {"beta": 0.5, "nll_coefficient": 0.2}}, cpo, marks=pytest.mark.slow),
    ],
    ids=["simpo", "orpo", "cpo"],
)
def test_reference_free_methods_end_at_a_stationary_point(
    problem: Problem, algorithm: Mapping[str, Any], expected: Expected
) -> None:
    found = learn(problem, algorithm, every_pair(problem), preferences(problem))
    check(found, least(problem, expected), problem.reference)


@pytest.mark.slow
@on("one")
def test_hinge_ends_at_the_least_loss(problem: Problem) -> None:
    """A linear programme, flat along edges: the loss is compared, not the distribution."""
    beta, pairs, p = 0.5, every_pair(problem), preferences(problem)
    found = learn(problem, {"dpo": {"beta": beta, "loss": "hinge"}}, pairs, p)

    def loss(logprobs: Tensor) -> float:
        h = beta * (logprobs - problem.reference.log())
        parts = [
            p[i, j] * torch.relu(1 - h[i] + h[j]) + (1 - p[i, j]) * torch.relu(1 + h[i] - h[j])
            for i, j in pairs
        ]
        return float(sum(parts)) / len(pairs)

    # Of unknowns h [answers], and for each pair what its margin lacks for one label (a >= 1 - h)
    # and for the other.
    n, answers = len(pairs), len(problem.answers)
    price = (
        [0.0] * answers
        + [float(p[i, j]) / n for i, j in pairs]
        + [1 - float(p[i, j]) for i, j in pairs]
    )
    price[answers + n :] = [x / n for x in price[answers + n :]]
    rows = []
    for k, (i, j) in enumerate(pairs):
        for sign, slack in ((-1.0, answers + k), (1.0, answers + n + k)):
            row = [0.0] * len(price)
            row[i], row[j], row[slack] = sign, -sign, -1.0
            rows.append(row)
    bounds = [(None, None)] * answers + [(0, None)] * (2 * n)
    best = linprog(price, A_ub=rows, b_ub=[-1.0] * len(rows), bounds=bounds).fun
    first, last = loss(problem.reference.log()), loss(found.log())
    print(f"expected hinge loss {first:.4f} before, {last:.4f} after, {best:.4f} at the least")
    assert best <= last < best + 0.02 * (first - best)


# Thumbs and instructions


def test_kto_moves_probability_to_what_most_find_desirable(one: Problem) -> None:
    """No optimum inside: sigma(beta (log ratio - z0)) of every answer only falls or only rises,
    until others have no probability left to give. So only the direction is tested.
    """
    up = [8, 2, 3, 7, 9, 1]  # thumbs up of ten
    thumbs = [(i, k < up[i]) for i in range(len(up)) for k in range(10)]
    groups = [
        Group(
            # Words that the tokenizer drops: other prompts, equal tokens
            ({"role": "user", "content": str(n)},),
            (
                Response(
                    text=one.answers[i], tokens=one.ids(one.answers[i]), truncated=True, label=label
                ),
            ),
            id=str(n),
        )
        for n, (i, label) in enumerate(thumbs)
    ]
    write_groups(one.folder / "thumbs.jsonl", groups)
    stage = {
        "algorithm": {"kto": {"beta": 0.5}},
        "data": {"path": "thumbs.jsonl"},
        "batch_size": 30,
        "epochs": 30,
        "learning_rate": 1e-2,
    }
    found = train(one, trained=stage)
    disliked = torch.tensor(up) < 5
    assert (found < one.reference)[disliked].all()
    before, after = float(one.reference[disliked].sum()), float(found[disliked].sum())
    print(f"P(mostly undesirable) {before:.3f} before, {after:.4f} after")
    assert before > 0.5 and after < 0.02


GOOD, BAD = "G", "B"
ASKED = (
    "{% for m in messages %}{{ m['content'] }}{% if m['role'] != 'system' %}"
    "{{ '<end>' if m['role'] == 'assistant' else '<q>' }}{% endif %}{% endfor %}"
)


@pytest.fixture
def asked(tmp_path: Path) -> Problem:
    """Answers of one letter, and two further tokens that are instructions: written by nobody, shown
    to the model.
    """
    from transformers import AutoTokenizer, PhiForCausalLM

    base = make(tmp_path, f"abcdef{GOOD}{BAD}", 1).base
    model, tokenizer = PhiForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    with torch.no_grad():
        model.lm_head.bias[-2:] = -30.0
    model.save_pretrained(base)
    tokenizer.chat_template = ASKED
    tokenizer.save_pretrained(base)
    return Problem("abcdef", 1, tmp_path)


def answers_under(problem: Problem, folder: Path, instruction: str) -> Tensor:
    """P(answer | instruction) by a model folder, [answers]."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(problem.base)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    prompt = tokenizer(f"{instruction}<q>", add_special_tokens=False)["input_ids"]
    assert len(prompt) == 2
    with torch.no_grad():
        probabilities = model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
    return probabilities[[problem.ids(answer)[0] for answer in problem.answers]]


@pytest.mark.parametrize("alpha", [1.0, pytest.param(0.0, marks=pytest.mark.slow)])
def test_hir_learns_what_fulfils_each_instruction(asked: Problem, alpha: float) -> None:
    """Relabelled samples of an instruction are those that fulfil it, in the policy's own
    proportions, so that is what NLL learns. The contrast, which has no optimum of its own, has
    nothing against it: P under the other one is 0.
    """
    prompts = 16
    options = {
        "instructions": [BAD, GOOD],
        "thresholds": [0.0],
        "contrast_coefficient": alpha,
        "entropy_coefficient": 0.0,
    }
    stage = {
        "algorithm": {"hir": options},
        "prompts": write_prompts(asked, prompts),
        "reward": write_reward(asked),
        "rollout": rollout(asked, 64),
        "iterations": 1,
        "prompts_per_iteration": prompts,
        "batch_size": 2 * prompts,
        "epochs": 60,
        "learning_rate": 1e-2,
    }
    train(asked, trained=stage)
    folder = asked.folder / "run" / "trained"
    samples = [
        response.text
        for group in read_groups(folder / "rollouts" / "0001.jsonl")
        for response in group.responses
    ]
    count = torch.tensor(
        [float(samples.count(answer)) for answer in asked.answers], dtype=torch.float64
    )
    # As many samples as there are
    assert total_variation(count / len(samples), asked.reference) < 0.05
    for instruction, fulfils in ((GOOD, asked.rewards > 0), (BAD, asked.rewards <= 0)):
        wanted = torch.where(fulfils, count, 0.0)
        check(
            answers_under(asked, folder / "adapter", instruction),
            wanted / wanted.sum(),
            asked.reference,
        )
