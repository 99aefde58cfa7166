"""Best of K: its KL is exact where answers can be enumerated (Beirami et al. 2024), and what the
best and the median of K samples gain (Touvron et al. 2023, figure 7) follows from 64 that are
scored once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignkit import functional as F
from alignkit.data.group import read_groups
from alignkit_plugins.cells.crossed import Array
from alignkit_plugins.report import drawing
from benchmarks.papers.claim import Row, chart, run_stages
from benchmarks.papers.enumerable import best_of, kl, make, write_prompts, write_reward

QUANTILES = {"best": 1.0, "upper quartile": 0.75, "median": 0.5}


def compute(row: Row, rule: Mapping[str, Any], folder: Path) -> Any:
    """By K the exact KL and reward of best of K, what K of 64 samples have on average, and the mean
    of the samples that `evaluate` took of best of `policy`.
    """
    letters, length, scale = rule["methods"][row.method]["answers"]
    problem = make(folder, letters, length, scale, seed=row.seed)
    mean = float((problem.reference * problem.rewards).sum())
    spread = float((problem.reference * (problem.rewards - mean) ** 2).sum()) ** 0.5
    exact = list[list[float]]()
    for k in rule["k"]:
        policy = best_of(problem.reference, problem.rewards, k)
        gain = (float((policy * problem.rewards).sum()) - mean) / spread
        exact.append([k, kl(policy, problem.reference), gain])
    found: dict[str, Any] = {"exact": exact}
    if row.method == rule["sampled"]:
        write_prompts(problem, rule["prompts"])
        write_reward(problem)
        run_stages("best_of_k", folder, folder / "run", ["report"], [f"seed={row.seed}"])
        scores = samples(folder / "run")
        plain = (scores["base"] - mean) / spread
        for name, quantile in QUANTILES.items():
            found[name] = [expected_quantile(plain, k, quantile) for k in rule["k"]]
        found["policy"] = (float(scores["best"].mean()) - mean) / spread
    return found


def samples(run: Path) -> dict[str, Array]:
    """By policy the scores of samples [prompts, samples]."""
    rows = dict[str, list[list[float]]]()
    for group in read_groups(run / "report" / "samples.jsonl"):
        own = dict[str, list[float]]()
        for response in group.responses:
            (score,) = [value for name, value in response.scores.items() if name == "true reward"]
            own.setdefault(response.source or "", []).append(float(score or 0.0))
        for policy, values in own.items():
            rows.setdefault(policy, []).append(values)
    return {policy: np.array(values) for policy, values in rows.items()}


def expected_quantile(scores: Array, k: int, quantile: float) -> float:
    """The mean of this quantile of K scores, over all choices of K of a row's [prompts, scores].

    Of N ascending scores, the i-th is the j-th of C(i - 1, j - 1) C(N - i, K - j) of all C(N, K)
    choices. Between two places the quantile is interpolated.
    """
    ascending, n = np.sort(scores, -1), scores.shape[-1]
    place = 1 + quantile * (k - 1)
    weights = np.zeros(n)
    for j, share in ((math.floor(place), 1 - place % 1), (math.ceil(place), place % 1)):
        for i in range(1, n + 1):
            ways = math.comb(i - 1, j - 1) * math.comb(n - i, k - j)
            weights[i - 1] += share * ways / math.comb(n, k)
    return float((ascending @ weights).mean())


# What they say


def measures(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, dict[int, float]]:
    """By seed: the most that KL exceeds the bound by, for any K and set of answers; how much a
    quantile of K samples gains with log K, in standard deviations of a sample per nat; and what
    sampled best of K gains more than the exact one.
    """
    found = dict[str, dict[int, float]]()
    for row in rows:
        seed, values = row["seed"], row["values"]
        over = max(one - F.best_of_n_kl(k) for k, one, _ in values["exact"])
        above = found.setdefault("above the bound", {})
        above[seed] = max(over, above.get(seed, over))
        if "policy" in values:
            for name in QUANTILES:
                slope = np.polyfit(np.log(rule["k"]), values[name], 1)[0]
                found.setdefault(name, {})[seed] = float(slope)
            exact = {k: gain for k, _, gain in values["exact"]}[rule["policy"]]
            found.setdefault("policy", {})[seed] = values["policy"] - exact
    return found


def after(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, dict[int, float]]:
    """How far the median drifts in single models, up or down."""
    slopes = measures(rows, rule)["median"]
    return {
        "size of the median's slope, deviations per nat": {s: abs(x) for s, x in slopes.items()}
    }


def figures(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, drawing.Drawing]:
    """KL, and the gain of quantiles of K samples, against K."""
    kls: dict[str, Any] = {"bound": [[F.best_of_n_kl(k) for k in rule["k"]]]}
    gains = dict[str, Any]()
    for row in rows:
        name = rule["methods"][row["method"]]["name"]
        kls.setdefault(name, []).append([one for _, one, _ in row["values"]["exact"]])
        for quantile in QUANTILES:
            if quantile in row["values"]:
                gains.setdefault(quantile, []).append(row["values"][quantile])
    return {
        "KL of best of K": chart(rule["k"], kls, "K", "KL, nats", doublings=True),
        "Reward of K samples above the mean of one": chart(
            rule["k"], gains, "K", "standard deviations of a sample", doublings=True
        ),
    }
