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
from tests.net.test_golden import CHECKS, Case

EXAMPLES = settings(max_examples=60, deadline=None, derandomize=True)


def check(
    name: str,
    inputs: dict[str, Any],
    expected: dict[str, Any],
    params: Any = None,
    rtol: float = 1e-9,
) -> None:
    data = {"id": "unseen", "params": params or {}, "inputs": inputs, "expected": expected}
    case = Case(data, {"rtol": rtol, "atol": 1e-9}, torch.float64)
    CHECKS[name](case)
    assert not case.left


def listed(values: Any) -> list[Any]:
    return np.asarray(values).tolist()


# --- the normalization of a reward model

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
    std = (
        math.sqrt(math.fsum((x + bias) ** 2 for x in demos) / len(demos))
        if len(set(demos)) > 1
        else 0.0
    )
    gain = 1 / std if std else 1.0
    expected = {
        "bias": bias,
        "new_bias_only": [x + bias for x in new],
        "gain_unit_variance": gain,
        "new_mean0_var1": [(x + bias) * gain for x in new],
    }
    found = F.reward_normalizer(torch.tensor(demos, dtype=torch.float64))
    assert found == pytest.approx((bias, gain), rel=1e-7, abs=1e-7)
    # Rounding grows with the numbers that cancel
    scale = max(1.0, *map(abs, demos), *map(abs, new))
    if std > 1e-6 * scale or not std:
        tolerance = {"rtol": 1e-6, "atol": 1e-9 * scale * max(1.0, gain)}
        case = Case({"id": "", "params": {}, "inputs": {"demo_rewards": demos, "new_rewards": new},
                     "expected": {**expected, "demo_mean_after": 0.0, (
                         "pair_difference_unchanged"
                     ): new[0] - new[1]}},
                    tolerance, torch.float64)  # fmt: skip
        CHECKS["rm_normalize"](case)


def test_rm_normalize_with_numbers_of_any_size() -> None:
    for scale in (1e-9, 1e-3, 1e12, 1e30):  # a spread below 1e-12 is rounding
        bias, gain = F.reward_normalizer(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) * scale)
        assert bias == pytest.approx(-2 * scale) and gain == pytest.approx(math.sqrt(1.5) / scale)
        assert F.reward_normalizer(torch.full((7,), 0.1, dtype=torch.float64) * scale)[1] == 1.0


# --- Llama 2's reward

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
    helpful, safety, is_safety, kl = (list(column) for column in zip(*rows, strict=True))
    uses = [bool(flag) or s < threshold for s, flag in zip(safety, is_safety, strict=True)]
    chosen = [s if use else h for h, s, use in zip(helpful, safety, uses, strict=True)]
    clamped = [min(max(x, 1e-6), 1 - 1e-6) for x in chosen]
    logits = np.array([math.log(x) - math.log1p(-x) for x in clamped])
    expected: dict[str, Any] = {"uses_safety": uses, "R_c": chosen, "logit_clamped": listed(logits)}
    for ddof in (0, 1):
        centered = logits - logits.mean()
        variance = (centered**2).sum() / max(1, len(logits) - ddof)
        white = centered / math.sqrt(variance + 1e-8)
        expected[f"R_tilde_ddof{ddof}"] = listed(white)
        expected[f"R_final_ddof{ddof}_beta{beta:g}"] = listed(white - beta * np.array(kl))
    inputs = {"R_h": helpful, "R_s": safety, "is_safety": is_safety, "sequence_kl": kl}
    params = {"threshold": threshold, "logit_eps": 1e-6, "beta": beta}
    check("llama2_reward", inputs, expected, params, rtol=1e-6)


# --- a judge's labels

LOGPROB = st.one_of(st.floats(-40, 0), st.sampled_from([0.0, -1.0, -40.0, -1e3]))
JUDGED = st.tuples(LOGPROB, LOGPROB, LOGPROB, LOGPROB, st.floats(-50, 50), st.floats(-50, 50))


def first_of(one: float, two: float) -> float:
    """The probability of the first of two log-probabilities, normalized over both."""
    top = max(one, two)
    return math.exp(one - top) / (math.exp(one - top) + math.exp(two - top))


@EXAMPLES
@given(st.lists(JUDGED, min_size=1, max_size=8))
def test_rlaif(rows: list[tuple[float, ...]]) -> None:
    rows = [row for row in rows if abs(row[0] - row[1]) > 1e-6 and abs(row[2] - row[3]) > 1e-6] or [
        (-1, -2, -3, -1, 0, 1)
    ]
    in_ab = [first_of(row[0], row[1]) for row in rows]
    in_ba = [first_of(row[3], row[2]) for row in rows]
    p = [(a + b) / 2 for a, b in zip(in_ab, in_ba, strict=True)]
    gaps = [row[4] - row[5] for row in rows]
    loss = sum(
        q * float(np.logaddexp(0, -d)) + (1 - q) * float(np.logaddexp(0, d))
        for q, d in zip(p, gaps, strict=True)
    )
    expected = {
        "p_a_order_AB": in_ab,
        "p_a_order_BA": in_ba,
        "p_a": p,
        "hard_label_a": [0.5 if abs(x - 0.5) <= 1e-4 else float(x > 0.5) for x in p],
        "position_inconsistent": [(row[0] > row[1]) == (row[2] > row[3]) for row in rows],
        "cai_clamped_40_60": [min(max(x, 0.4), 0.6) for x in p],
        "rm_loss_soft": loss / len(rows),
        "grad_reward_a": [(first_of(d, 0) - q) / len(rows) for q, d in zip(p, gaps, strict=True)],
        "trap_p_without_swapping": None,
    }
    same = expected["position_inconsistent"]
    expected["position_inconsistent_rate"] = sum(same) / len(same)
    inputs = {
        "logp_first_second_order_AB": [list(row[:2]) for row in rows],
        "logp_first_second_order_BA": [list(row[2:4]) for row in rows],
        "reward_a": [row[4] for row in rows],
        "reward_b": [row[5] for row in rows],
    }
    check("rlaif", inputs, expected)


@EXAMPLES
@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=6))
def test_principles(p: list[list[float]]) -> None:
    means = [math.fsum(row) / 3 for row in p]
    clamped = [min(max(x, 0.4), 0.6) for x in means]
    check("rlaif", {"p_a_by_principle": p}, {"p_a": means, "clamped": clamped})


@EXAMPLES
@given(
    st.lists(
        st.lists(st.sampled_from([0.0, -0.0, 1.0, 1e-300, math.inf]), min_size=2, max_size=2),
        max_size=6,
    )
)
def test_pairs_of_online_dpo(scores: list[list[float]]) -> None:
    # 0 and 1e-300 differ by less than rounding.
    chosen = [None if a == b or max(a, b) == 1e-300 else 0 if a > b else 1 for a, b in scores]
    check("rlaif", {"scores": scores}, {"chosen": chosen})


# --- agreement


@pytest.fixture(autouse=True)
def one_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Means are checked here, not intervals."""
    monkeypatch.setattr(agreement, "REPETITIONS", 1)


def beyond(observed: float, expected: float) -> float | None:
    return None if expected == 0 else 1 - observed / expected


def alpha(units: Sequence[Sequence[float | None]]) -> float | None:
    """By Krippendorff's definition: the disagreement within units, and of all ratings with each
    other.
    """
    known = [[x for x in unit if x is not None] for unit in units]
    known = [unit for unit in known if len(unit) >= 2]
    ratings = [x for unit in known for x in unit]
    n = len(ratings)
    if n == 0:
        return None
    seen = (
        math.fsum(
            (a != b) / (len(unit) - 1) for unit in known for a, b in itertools.permutations(unit, 2)
        )
        / n
    )
    chance = math.fsum(a != b for a, b in itertools.permutations(ratings, 2)) / (n * (n - 1))
    return beyond(seen, chance)


@EXAMPLES
@given(
    st.integers(1, 8).flatmap(
        lambda n: st.lists(
            st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=n, max_size=n),
            min_size=1,
            max_size=5,
        )
    )
)
def test_krippendorff(coders: list[list[int | None]]) -> None:
    units = list(zip(*coders, strict=True))
    expected = {"nominal": alpha(units)}
    check("agreement", {"data": coders, "k": 4}, expected)
    choices = [
        pair
        for unit in units
        for pair in itertools.combinations([x for x in unit if x is not None], 2)
    ]
    rate = sum(a == b for a, b in choices) / len(choices) if choices else None
    check("agreement", {"choices": coders}, {"mean_pairwise_agreement": rate})


def test_nobody_rated_anything() -> None:
    found = agreement.agreement_of([(None, 1), (1, math.nan), ()])
    assert found["same"]["mean"] is None and found["alpha"]["mean"] is None


# --- rankings


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
