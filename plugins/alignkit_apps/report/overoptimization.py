"""Reward against KL, and where more KL begins to cost reward: Gao et al. 2022 (arXiv:2210.10760).

With d = sqrt(KL(policy || start)), equation 2 says R(d) = d (alpha - beta log d) for reinforcement learning, where R is
the gain in reward. It is largest at d = exp(alpha / beta - 1). Differs: the reward at the start is fitted, too, because
its measurement is as noisy as the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from alignkit.evaluation.readable import bounds, number, short
from alignkit_apps.charts.curves import Figure, Series, figure

DRAWABLE = 3  # points
LEAST = 8  # points of a fit with three numbers
SURE = 2.0  # standard errors that beta must be from 0
DRAWN = 60  # points of the fitted curve


class Fit(TypedDict):
    """A fitted curve R = start + d (alpha - beta log d), d = sqrt(KL).

    points: how many. peak_kl: KL in nats at which the curve is highest, and peak_reward: its reward there; None if beta
    is not clearly positive. largest_kl: of the points. passed: whether the points go beyond the peak.
    """

    stage: str
    reward: str
    points: int
    start: float
    alpha: float
    beta: float
    peak_kl: float | None
    peak_reward: float | None
    largest_kl: float
    passed: bool
    sentence: str


def fitted(stage: str, reward: str, kl: Sequence[float], values: Sequence[float]) -> Fit | None:
    """The curve through points; None if there are too few, or if they hardly differ in KL.

    kl: in nats; estimates below 0 count as 0.
    """
    import numpy as np

    d, y = np.sqrt(np.clip(np.asarray(kl, dtype=float), 0.0, None)), np.asarray(values, dtype=float)
    moved = d[d > 0]
    if len(set(d.tolist())) < LEAST or not len(moved):
        return None
    design = np.stack([np.ones_like(d), d, -d * np.log(np.where(d > 0, d, 1.0))], axis=1)
    if np.linalg.matrix_rank(design) < 3:
        return None
    solution = np.linalg.lstsq(design, y, rcond=None)[0]
    start, alpha, beta = map(float, solution)
    spare = max(1, len(y) - 3)
    variance = float(((y - design @ solution) ** 2).sum()) / spare
    error = math.sqrt(max(0.0, variance * float(np.linalg.inv(design.T @ design)[2, 2])))
    largest = float(d.max())
    peak = _peak(alpha, beta, error)
    passed = peak is not None and peak < largest
    fit: Fit = {
        "stage": stage,
        "reward": reward,
        "points": len(y),
        "start": start,
        "alpha": alpha,
        "beta": beta,
        "peak_kl": None if peak is None else peak**2,
        "peak_reward": None if peak is None else start + peak * (alpha - beta * math.log(peak)),
        "largest_kl": largest**2,
        "passed": passed,
        "sentence": "",
    }
    return {**fit, "sentence": _sentence(fit)}


def _peak(alpha: float, beta: float, error: float) -> float | None:
    """d at the highest point; None if there is none, or if it may be noise."""
    if beta <= SURE * error or not -50 < alpha / beta < 50:
        return None
    return math.exp(alpha / beta - 1)


def _sentence(fit: Fit) -> str:
    reach = f"up to a KL of {short(fit['largest_kl'])} nats"
    root = math.sqrt(fit["largest_kl"])
    if fit["peak_kl"] is None and fit["alpha"] <= fit["beta"] * math.log(root):
        return f"{fit['reward']} does not rise {reach}"
    if fit["peak_kl"] is None:
        return f"{fit['reward']}: no sign of over-optimization {reach}"
    peak = f"{short(fit['peak_kl'])} nats (reward {short(fit['peak_reward'])})"
    if fit["passed"]:
        return f"{fit['reward']} is highest at a KL of {peak} and falls beyond: stop there, or raise the KL coefficient"
    return f"{fit['reward']}: no over-optimization {reach}; the curve would be highest at {peak}"


def training(stage: str, rows: Sequence[Mapping[str, Any]]) -> tuple[Figure, Fit | None] | None:
    """The reward of a stage's iterations against their KL; None if there are fewer than DRAWABLE points."""
    both = [(number(row.get("kl")), number(row.get("reward"))) for row in rows]
    points = [(kl, reward) for kl, reward in both if kl is not None and reward is not None]
    if len({kl for kl, _ in points}) < DRAWABLE:
        return None
    kl, reward = [point[0] for point in points], [point[1] for point in points]
    dots = _points("iterations", kl, reward)
    fit = fitted(stage, "the training reward", kl, reward)
    return _figure(stage, "Training reward against KL", [dots], [fit] if fit else []), fit


def gold(stage: str, rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Reward and gold of a stage's iterations against their KL, each as a gain in its own deviations at the start.

    A dotted line marks where gold was highest. None if there are fewer than DRAWABLE points.
    """
    found = [[number(row.get(key)) for key in ("kl", "reward", "gold", "step")] for row in rows]
    points = [[value for value in each if value is not None] for each in found if None not in each]
    scales = [next(filter(None, (number(row.get(key)) for row in rows)), None) for key in ("reward_std", "gold_std")]
    if len({point[0] for point in points}) < DRAWABLE or None in scales:
        return None
    kl, rewards, golds, steps = (list(column) for column in zip(*points, strict=True))
    reward, true = (
        [(v - own[0]) / float(s or 1) for v in own] for own, s in zip((rewards, golds), scales, strict=True)
    )
    best = max(range(len(points)), key=true.__getitem__)
    named = (("reward", reward), ("gold", true))
    drawn = _figure(stage, "Reward and gold against KL", [_points(name, kl, y) for name, y in named], [])
    drawn["y_label"], drawn["marks"] = "gain, deviations", [_roots(kl)[best]]
    where = f"gold was highest in iteration {steps[best]:.0f}, at a KL of {short(kl[best])} nats"
    change = (
        f"gold changed by {true[-1] - true[best]:+.2g} and the reward by {reward[-1] - reward[best]:+.2g} deviations"
    )
    last = best == len(points) - 1
    drawn["note"] = f"{where}, the last one: no over-optimization so far" if last else f"{where}; since then {change}"
    return drawn


def _points(name: str, kl: Sequence[float], y: list[float]) -> Series:
    return {"name": name, "style": "points", "x": _roots(kl), "y": y}


def evaluated(stage: str, summary: Mapping[str, Any]) -> list[tuple[Figure, Fit | None]]:
    """For each reward, the means of evaluated policies against their KL, if there are at least DRAWABLE."""
    drawn = []
    for reward in map(str, summary.get("rewards", ())):
        points = []
        for name, policy in summary.get("policies", {}).items():
            kl, (mean, low, high) = bounds(policy.get("kl"))[0], bounds(policy["rewards"].get(reward))
            if kl is not None and mean is not None:
                points.append((max(0.0, kl), mean, low, high, str(name)))
        if len(points) < DRAWABLE:
            continue
        points.sort()
        kls, means, lows, highs, names = map(list, zip(*points, strict=True))
        dots = Series(name="policies", style="points", x=_roots(kls), y=means, low=lows, high=highs, labels=names)
        fit = fitted(stage, reward, kls, means)
        drawn.append((_figure(stage, f"{reward} against KL", [dots], [fit] if fit else []), fit))
    return drawn


def _roots(kl: Sequence[float]) -> list[float]:
    return [math.sqrt(max(0.0, value)) for value in kl]


def _figure(stage: str, title: str, series: list[Series], fits: Sequence[Fit]) -> Figure:
    drawn, note = [*series, *map(_curve, fits)], "; ".join(fit["sentence"] for fit in fits)
    return figure(stage, title, drawn, x_label="√KL, √nats", y_label="reward", note=note)


def _curve(fit: Fit) -> Series:
    largest = math.sqrt(fit["largest_kl"])
    d = [largest * (index + 1) / DRAWN for index in range(DRAWN)]
    y = [fit["start"] + at * (fit["alpha"] - fit["beta"] * math.log(at)) for at in d]
    return {"name": "fit", "style": "fit", "x": d, "y": y}
