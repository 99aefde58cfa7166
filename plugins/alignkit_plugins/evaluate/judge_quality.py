"""Verdicts of a judge on pairs of answers, and what they say of the judge: order, length, and whether it is one.

The unit of all intervals is a prompt.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignkit.evaluation import statistics
from alignkit.reward import Verdict

if TYPE_CHECKING:
    from alignkit.evaluation.statistics import Estimate
    from alignkit_plugins.people.krippendorff import Agreement

ONE_POSITION, SURELY = 0.9, 0.8  # share of questions, and the end of its interval, from which a judge names a position
USEFUL = 0.65  # agreement that a judge like a coin must be clearly below
HALF_BY_ORDER = 1 / 3  # share of pairs decided by the order that a judge like a coin must be clearly above
COIN = 0.5


@dataclass(frozen=True)
class Judgment:
    """A verdict on two different answers.

    unit: its prompt. longer: how many times the first answer is twice as long, log2 of the ratio of their characters.
    named_first: for each question, P(the answer that is shown first). policy: comparisons of one policy.
    """

    unit: int
    verdict: Verdict
    longer: float
    named_first: tuple[float, ...]
    policy: str = ""


def judgment(unit: int, verdict: Verdict, first: str, second: str, policy: str = "") -> Judgment:
    """The verdict on these two answers, which the judge has seen in both orders."""
    orders = verdict.p_orders if verdict.p_first is not None else None
    shown = (orders[0], 1 - orders[1]) if orders else ()
    return Judgment(unit, verdict, times_longer(first, second), shown, policy)


def times_longer(first: str, second: str) -> float:
    """How many times a text is twice as long as another one."""
    return math.log2(max(1, len(first)) / max(1, len(second)))


def side(p: float | None) -> int | None:
    """1 if the first is better, -1 if the second is; None for a tie or without a verdict."""
    return None if p is None or Verdict(p).tied else 1 if p > COIN else -1


def unjudged(verdicts: Iterable[Verdict]) -> Counter[str]:
    """Verdicts that are missing, by their reason without its details."""
    return Counter(v.reason.partition(":")[0] or "no reason given" for v in verdicts if v.p_first is None)


def verdict_facts(judgments: Sequence[Judgment]) -> dict[str, Any]:
    """The parts of a card that follow from the verdicts alone."""
    verdicts = [each.verdict for each in judgments]
    known = [(each.unit, each.verdict.p_orders) for each in judgments if each.verdict.p_first is not None]
    swayed = [(unit, float((p[0] - COIN) * (p[1] - COIN) < 0)) for unit, p in known if p]
    return {
        "comparisons": len(judgments),
        "unjudged": dict(unjudged(verdicts).most_common()),
        "inconsistent": by_unit(swayed),
        "named_first": named_first(judgments),
        "length_slope": length_slope(judgments),
    }


def named_first(judgments: Sequence[Judgment]) -> Estimate:
    """The share of questions that are answered with the answer that is shown first; a tie is half of one."""
    questions = [(each.unit, {1: 1.0, -1: 0.0}.get(side(p) or 0, 0.5)) for each in judgments for p in each.named_first]
    return by_unit(questions)


def by_unit(values: Iterable[tuple[int, float]]) -> Estimate:
    """The mean of values from 0 to 1, of which those of a unit are averaged first, with the interval of a rate."""
    units: dict[int, list[float]] = {}
    for unit, value in values:
        units.setdefault(unit, []).append(value)
    most = max(map(len, units.values()), default=1)
    return statistics.rate([statistics.mean(each) for each in units.values()], most)


def raters_agree(answers: Sequence[tuple[int, Any, Any]], seed: int) -> Agreement:
    """How far two raters agree, in percent and by Krippendorff's alpha. answers: prompt, and the answer of each."""
    from alignkit_plugins.people.krippendorff import agreement_of  # imports numpy

    clusters = [unit for unit, _, _ in answers]
    both = agreement_of([(one, other) for _, one, other in answers], clusters=clusters, seed=seed)
    return {"same": by_unit((unit, float(one == other)) for unit, one, other in answers), "alpha": both["alpha"]}


def length_slope(judgments: Sequence[Judgment]) -> Estimate:
    """By how much P(better) grows when an answer is twice as long: least squares, with an intercept for each policy.

    It says what goes with length, not what length causes: longer answers may be better. Comparisons of a policy at one
    prompt are averaged first. All policies of a prompt meet the same baseline's answer, so the variance is that of
    whole prompts, jackknifed (CR3; Bell and McCaffrey 2002, "Bias reduction in standard errors for linear regression
    with multi-stage samples"). None without different lengths.
    """
    import numpy as np
    from scipy import stats

    cells: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for each in judgments:
        if each.verdict.p_first is not None:
            cells.setdefault((each.policy, each.unit), []).append((each.longer, each.verdict.p_first))
    policies, units = np.array([policy for policy, _ in cells]), np.array([unit for _, unit in cells])
    rows = np.array([np.mean(row, axis=0) for row in cells.values()]).reshape(-1, 2)
    for policy in np.unique(policies):
        rows[policies == policy] -= rows[policies == policy].mean(axis=0)
    x, y = rows.T
    prompts = [units == unit for unit in np.unique(units)]
    n, spread = len(prompts), float(x @ x)
    if n < 3 or spread < 1e-12:
        return {"mean": None, "low": None, "high": None, "n": n}
    slope = float(x @ y) / spread
    parts = np.array([(x[own] @ (y - slope * x)[own], x[own] @ x[own]) for own in prompts])  # [prompts, 2]
    rest = np.maximum(spread * (1 - 1 / n) - parts[:, 1], 0.05 * spread)  # without each prompt
    changes = parts[:, 0] / rest  # of the slope
    half = float(stats.t.ppf((1 + statistics.CONFIDENCE) / 2, n - 2)) * math.sqrt(float(changes @ changes))
    low, high = (slope - half, slope + half) if half > 1e-12 else (None, None)
    return {"mean": slope, "low": low, "high": high, "n": n}


# The verdict on the judge


def no_judge(card: Mapping[str, Any]) -> str:
    """Why the judge is none, or which judge of a panel, in words; empty if nothing says so."""
    reasons = [*_position(card), *_coin(card)]
    own = f"this is no judge: {'; '.join(reasons)}" if reasons else ""
    parts = (f"{name} in it: {part['no_judge']}" for name, part in card.get("members", {}).items() if part["no_judge"])
    return "; ".join([*([own] if own else []), *parts])


def _position(card: Mapping[str, Any]) -> Iterable[str]:
    first = card["named_first"]
    for which, mean, low in (("first", first["mean"], first["low"]), ("second", *_turned(first))):
        if mean is not None and low is not None and mean >= ONE_POSITION and low > SURELY:
            yield f"it names the {which} answer that it reads in {mean:.0%} of questions"


def _turned(share: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The mean and the low end of what remains to 1."""
    mean, high = share["mean"], share["high"]
    return None if mean is None else 1 - mean, None if high is None else 1 - high


def _coin(card: Mapping[str, Any]) -> Iterable[str]:
    """It is clear that a judge is near a coin; a few pairs are not enough to say so."""
    shown = statistics.shown
    if (people := card.get("people")) and _like_a_coin(people["same"]):
        yield f"it agrees with people in {shown(people['same'], percent=True)}, no better than a coin"
    swayed = card["inconsistent"]
    if swayed["low"] is not None and swayed["low"] > HALF_BY_ORDER and swayed["high"] >= COIN:
        yield f"the order decides {shown(swayed, percent=True)} of pairs, and would decide 50% of a coin's"


def _like_a_coin(share: Mapping[str, Any]) -> bool:
    low, high = share["low"], share["high"]
    return low is not None and high is not None and low <= COIN and high < USEFUL
