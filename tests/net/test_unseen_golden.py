"""Golden cases that nobody wrote down: random and extreme inputs, with expected values from the
definitions.

`test_golden.py` compares our functions with them as it does with the cases in `golden/`. The
definitions are written out here with plain loops: over pairs of ratings instead of tables, one game
at a time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit import functional as F
from alignkit_plugins.people import agreement
from tests.by_hand import double
from tests.net.test_golden import compare

EXAMPLES = settings(max_examples=25, deadline=None, derandomize=True)


def check(
    name: str,
    inputs: dict[str, Any],
    expected: dict[str, Any],
    rtol: float = 1e-9,
    atol: float = 1e-9,
    **params: Any,
) -> None:
    data = {"id": "unseen", "params": params, "inputs": inputs, "expected": expected}
    compare(name, data, {"rtol": rtol, "atol": atol}, torch.float64)


# The normalization of a reward model

SCORES = st.floats(-1e6, 1e6).map(lambda x: round(x, 6))


@EXAMPLES
@given(
    st.lists(SCORES, min_size=1, max_size=20),
    st.lists(SCORES, min_size=2, max_size=5),
    st.booleans(),
)
def test_rm_normalize(demos: list[float], new: list[float], constant: bool) -> None:
    demos = demos[:1] * len(demos) if constant else demos
    bias = -math.fsum(demos) / len(demos)
    std = 0.0
    if len(set(demos)) > 1:
        std = math.sqrt(math.fsum((x + bias) ** 2 for x in demos) / len(demos))
    gain = 1 / std if std else 1.0
    assert F.reward_normalizer(double(demos)) == pytest.approx((bias, gain), rel=1e-7, abs=1e-7)
    # Rounding grows with the numbers that cancel
    scale = max(1.0, *map(abs, demos), *map(abs, new))
    if std > 1e-6 * scale or not std:
        expected = {
            "bias": bias,
            "new_bias_only": [x + bias for x in new],
            "gain_unit_variance": gain,
            "new_mean0_var1": [(x + bias) * gain for x in new],
            "demo_mean_after": 0.0,
            "pair_difference_unchanged": new[0] - new[1],
        }
        inputs = {"demo_rewards": demos, "new_rewards": new}
        check("rm_normalize", inputs, expected, rtol=1e-6, atol=1e-9 * scale * max(1.0, gain))


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e12, 1e30])  # a spread below 1e-12 is rounding
def test_rm_normalize_with_numbers_of_any_size(scale: float) -> None:
    bias, gain = F.reward_normalizer(double([1.0, 2.0, 3.0]) * scale)
    assert bias == pytest.approx(-2 * scale) and gain == pytest.approx(math.sqrt(1.5) / scale)
    assert F.reward_normalizer(double([0.1] * 7) * scale)[1] == 1.0


# Llama 2's reward

PROBABILITY = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 0.15, 0.5, 1e-7, 1 - 1e-7]))
ROW = st.tuples(PROBABILITY, PROBABILITY, st.integers(0, 1), st.floats(0, 50))


@EXAMPLES
@given(
    st.lists(ROW, min_size=1, max_size=12),
    st.sampled_from([0.15, 0.5, 0.9]),
    st.sampled_from([0.01, 0.005, 1.0]),
)
def test_llama2_reward(
    rows: list[tuple[float, float, int, float]], threshold: float, beta: float
) -> None:
    uses = [bool(flag) or s < threshold for _, s, flag, _ in rows]
    chosen = [s if use else h for (h, s, _, _), use in zip(rows, uses, strict=True)]
    clamped = np.clip(chosen, 1e-6, 1 - 1e-6)
    logits = np.log(clamped) - np.log1p(-clamped)
    helpful, safety, is_safety, kl = (list(column) for column in zip(*rows, strict=True))
    expected: dict[str, Any] = {"uses_safety": uses, "R_c": chosen}
    expected["logit_clamped"] = logits.tolist()
    for ddof in (0, 1):
        centered = logits - logits.mean()
        variance = (centered**2).sum() / max(1, len(logits) - ddof)
        white = centered / math.sqrt(variance + 1e-8)
        expected[f"R_tilde_ddof{ddof}"] = white.tolist()
        expected[f"R_final_ddof{ddof}_beta{beta:g}"] = (white - beta * np.array(kl)).tolist()
    inputs = {"R_h": helpful, "R_s": safety, "is_safety": is_safety, "sequence_kl": kl}
    params = {"threshold": threshold, "logit_eps": 1e-6, "beta": beta}
    check("llama2_reward", inputs, expected, rtol=1e-6, **params)


# A judge's labels

LOGPROB = st.one_of(st.floats(-40, 0), st.sampled_from([0.0, -1.0, -40.0, -1e3]))
TWO = st.tuples(LOGPROB, LOGPROB).filter(lambda pair: abs(pair[0] - pair[1]) > 1e-6)
JUDGED = st.tuples(TWO, TWO, st.floats(-50, 50), st.floats(-50, 50))


def first_of(one: float, two: float) -> float:
    """The probability of the first of two log-probabilities, normalized over both."""
    top = max(one, two)
    return math.exp(one - top) / (math.exp(one - top) + math.exp(two - top))


@EXAMPLES
@given(st.lists(JUDGED, min_size=1, max_size=8))
def test_rlaif(rows: list[tuple[Any, Any, float, float]]) -> None:
    in_ab = [first_of(*ab) for ab, *_ in rows]
    in_ba = [first_of(two, one) for _, (one, two), *_ in rows]
    p = [(a + b) / 2 for a, b in zip(in_ab, in_ba, strict=True)]
    gaps = [a - b for *_, a, b in rows]
    losses, gradient = [], []
    for q, d in zip(p, gaps, strict=True):
        losses.append(q * np.logaddexp(0, -d) + (1 - q) * np.logaddexp(0, d))
        gradient.append((first_of(d, 0) - q) / len(rows))
    expected = {
        "p_a_order_AB": in_ab,
        "p_a_order_BA": in_ba,
        "p_a": p,
        "cai_clamped_40_60": [min(max(x, 0.4), 0.6) for x in p],
        "rm_loss_soft": float(sum(losses)) / len(rows),
        "grad_reward_a": gradient,
    }
    inputs = {
        "logp_first_second_order_AB": [ab for ab, *_ in rows],
        "logp_first_second_order_BA": [ba for _, ba, *_ in rows],
        "reward_a": [a for *_, a, _ in rows],
        "reward_b": [b for *_, b in rows],
    }
    check("rlaif", inputs, expected)


@EXAMPLES
@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=6))
def test_principles(p: list[list[float]]) -> None:
    means = [math.fsum(row) / 3 for row in p]
    clamped = [min(max(x, 0.4), 0.6) for x in means]
    check("rlaif", {"p_a_by_principle": p}, {"p_a": means, "clamped": clamped})


SCORE = st.sampled_from([0.0, -0.0, 1.0, 1e-300, math.inf])


@EXAMPLES
@given(st.lists(st.tuples(SCORE, SCORE), max_size=6))
def test_pairs_of_online_dpo(scores: list[tuple[float, float]]) -> None:
    """0 and 1e-300 differ by less than rounding."""
    chosen = []
    for a, b in scores:
        tied = a == b or max(a, b) == 1e-300
        chosen.append(None if tied else int(b > a))
    check("rlaif", {"scores": scores}, {"chosen": chosen})


# Agreement


@pytest.fixture(autouse=True)
def one_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Means are checked here, not intervals."""
    monkeypatch.setattr("alignkit.evaluation.statistics.REPETITIONS", 1)


def alpha(units: Sequence[Sequence[float | None]]) -> float | None:
    """By Krippendorff's definition: the disagreement within units, and of all ratings with each
    other.
    """
    known = [[x for x in unit if x is not None] for unit in units]
    known = [unit for unit in known if len(unit) >= 2]
    ratings = [x for unit in known for x in unit]
    n = len(ratings)
    chance = sum(a != b for a, b in itertools.permutations(ratings, 2))
    if not chance:
        return None
    within = [
        sum(a != b for a, b in itertools.permutations(unit, 2)) / (len(unit) - 1) for unit in known
    ]
    return 1 - (math.fsum(within) / n) / (chance / (n * (n - 1)))


RATING = st.one_of(st.none(), st.integers(0, 3))


@EXAMPLES
@given(
    st.integers(1, 8).flatmap(
        lambda n: st.lists(st.lists(RATING, min_size=n, max_size=n), min_size=1, max_size=5)
    )
)
def test_krippendorff(coders: list[list[int | None]]) -> None:
    units = list(zip(*coders, strict=True))
    check("agreement", {"data": coders, "k": 4}, {"nominal": alpha(units)})
    same = []
    for unit in units:
        known = [x for x in unit if x is not None]
        same += [a == b for a, b in itertools.combinations(known, 2)]
    rate = sum(same) / len(same) if same else None
    check("agreement", {"choices": coders}, {"mean_pairwise_agreement": rate})


def test_nobody_rated_anything() -> None:
    found = agreement.agreement_of([(None, 1), (1, math.nan), ()])
    assert found["same"]["mean"] is None and found["alpha"]["mean"] is None


# Rankings


@EXAMPLES
@given(st.lists(st.sampled_from([0, 0.5, 1]), min_size=1, max_size=30))
def test_win_rate(outcomes: list[float]) -> None:
    n, wins, ties = len(outcomes), outcomes.count(1), outcomes.count(0.5)
    p, z = (wins + ties / 2) / n, 1.959963984540054
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = {
        "wins": wins,
        "losses": n - wins - ties,
        "ties": ties,
        "win_rate_ties_half": p,
        "win_rate_excluding_ties": wins / (n - ties) if n > ties else None,
        "win_rate_ties_lose": wins / n,
        "wilson95_low": (middle - half) / (1 + z * z / n),
        "wilson95_high": (middle + half) / (1 + z * z / n),
    }
    check("ranking", {"outcomes": outcomes}, expected)
