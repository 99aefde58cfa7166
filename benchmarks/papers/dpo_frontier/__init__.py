"""DPO's frontier (Rafailov et al. 2023, figure 2): exact reward against exact KL of every policy of
a sweep, with the optimal frontier, which only answers that can be enumerated have.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignkit import Group, Pair
from alignkit.data.group import write_groups
from alignkit_plugins.cells.crossed import Array
from alignkit_plugins.report import drawing
from benchmarks.papers.claim import Row, chart, run_stages
from benchmarks.papers.enumerable import (
    Problem,
    kl,
    make,
    preferences,
    question,
    tilted,
    write_prompts,
    write_reward,
)

Points = Sequence[Sequence[float]]  # (KL, reward) of policies
# The option that is varied; SFT has none
VARIED = {
    "dpo": "dpo.beta",
    "unlikelihood": "unlikelihood.alpha",
    "ppo": "ppo.kl_coefficient",
    "ppo_true": "ppo.kl_coefficient",
}


def compute(row: Row, rule: Mapping[str, Any], folder: Path) -> Any:
    """(KL, reward) of the kept versions of each policy of the sweep."""
    letters, length, scale = rule["answers"]
    problem = make(folder, letters, length, scale, seed=row.seed)
    method = rule["methods"][row.method]
    values = method["tuned_at"] if row.tuning and "rates" in method else method["values"]
    if row.method == "optimum":
        return [point(problem, tilted(problem, beta)) for beta in values]
    write_data(problem, rule["pairs"], coins=method.get("coins", False))
    found, name = list[Any](), method.get("stage", row.method)
    for value in values:
        run, stage = folder / f"run-{value}", f"stages.{name}"
        if found and name == "ppo":  # one reward model for all
            shutil.copytree(folder / f"run-{values[0]}" / "reward", run / "reward")
        words = [f"{stage}.learning_rate={row.rate}", f"seed={row.seed}"]
        if name in VARIED:
            words.append(f"{stage}.algorithm.{VARIED[name]}={value}")
        stages = ["reward", "ppo"] if name == "ppo" else [name]
        run_stages("dpo_frontier", folder, run, stages, words)
        for version in rule["versions"]:
            folder_of = run / name / "kept" / str(version)
            found.append(point(problem, problem.distribution(folder_of)))
    return found


def point(problem: Problem, policy: torch.Tensor) -> list[float]:
    """KL(policy || reference) and the mean reward."""
    reward = float((policy * problem.rewards).sum())
    return [round(kl(policy, problem.reference), 6), round(reward, 6)]


def write_data(problem: Problem, count: int, *, coins: bool = False) -> None:
    """Pairs of the reference's own answers, of which one is preferred by Bradley-Terry, and the
    better ones alone. All pairs are one row, eight times: steps of all of them, eight an epoch.
    coins: whether either is preferred as often.
    """
    draw = torch.Generator().manual_seed(problem.seed)
    both = torch.multinomial(problem.reference, 2 * count, replacement=True, generator=draw)
    first, second = both.reshape(2, -1)
    chance = 0.5 if coins else preferences(problem)[first, second]
    wins = torch.rand(count, generator=draw) < chance
    better = torch.where(wins, first, second).tolist()
    worse = torch.where(wins, second, first).tolist()
    responses = list(map(problem.response, problem.answers))
    pairs = tuple(Pair(i, j) for i, j in zip(better, worse, strict=True) if i != j)
    chosen, rows = list[Group](), list[Group]()
    for at, answer in enumerate(better):
        chosen.append(Group(question(at), (responses[answer],), id=str(at)))
    for at in range(8):
        rows.append(Group(question(at), tuple(responses), pairs, id=str(at)))
    write_groups(problem.folder / "pairs.jsonl", rows)
    write_groups(problem.folder / "chosen.jsonl", chosen)
    write_prompts(problem, 64)
    write_reward(problem)


# What the points say


def frontier(points: Points, start: float, at: Array) -> Array:
    """The highest reward at each KL, of policies and of their mixtures: KL is convex, so a mixture
    of two has at most the KL that lies on the line between them. start: the reference's reward.
    """
    hull = [(0.0, start)]
    for one, gain in sorted((float(x), float(y)) for x, y in points):
        while len(hull) > 1 and _above(hull[-2], (one, gain), hull[-1]):
            hull.pop()
        if gain > hull[-1][1]:
            hull.append((one, gain))
    return np.interp(at, *np.array(hull).T)


def _above(left: tuple[float, float], right: tuple[float, float], middle: Any) -> bool:
    """Whether the line from left to right is at or above the middle."""
    slope = (right[1] - left[1]) / (right[0] - left[0])
    return bool(left[1] + slope * (middle[0] - left[0]) >= middle[1])


def curves(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> tuple[Array, dict[str, dict[int, Array]]]:
    """A grid of KL, and by method and seed the gain in reward of its frontier there, as a share of
    the most that is possible at its end.
    """
    at = np.linspace(0, rule["most_kl"], 41)
    best = dict[int, tuple[float, float]]()
    for row in rows:
        if row["method"] == "optimum":
            start = min(row["values"])[1]  # beta of 1e9: the reference
            best[row["seed"]] = start, float(frontier(row["values"], start, at)[-1])
    found = dict[str, dict[int, Array]]()
    for row in rows:
        start, top = best[row["seed"]]
        gain = (frontier(row["values"], start, at) - start) / (top - start)
        found.setdefault(row["method"], {})[row["seed"]] = gain
    return at, found


def measures(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, dict[int, float]]:
    """By method and seed, the area below its frontier as a share of that below the optimal one."""
    _, found = curves(rows, rule)
    shares = dict[str, dict[int, float]]()
    for method, own in found.items():
        shares[method] = {
            s: float(gain.sum() / found["optimum"][s].sum()) for s, gain in own.items()
        }
    return shares


def shared(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any], one: str, other: str
) -> dict[int, tuple[float, float]]:
    """By seed the areas below two frontiers, from KL 0 to what both reach, as shares of that below the
    optimal one there.
    """
    points = {(row["method"], row["seed"]): row["values"] for row in rows}
    found = dict[int, tuple[float, float]]()
    for seed in sorted({row["seed"] for row in rows}):
        best, first, second = (points[name, seed] for name in ("optimum", one, other))
        start = min(best)[1]  # beta of 1e9: the reference
        at = np.linspace(0, min(rule["most_kl"], max(first)[0], max(second)[0]), 401)
        top, *both = ((frontier(each, start, at) - start).sum() for each in (best, first, second))
        found[seed] = both[0] / top, both[1] / top
    return found


def after(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, dict[int, float]]:
    """Areas; and DPO minus another method over the KL that both reach, and at single KLs."""
    at, gains = curves(rows, rule)
    found, methods = dict[str, dict[int, float]](), rule["methods"]
    for name, areas in measures(rows, rule).items():
        if name != "optimum":
            found[f"{methods[name]['name']}: area"] = areas
    for name in ("ppo", "ppo_true", "unlikelihood", "sft"):
        both = shared(rows, rule, "dpo", name)
        title = f"DPO minus {methods[name]['name']}"
        found[f"{title}, KL that both reach: area"] = {s: own - x for s, (own, x) in both.items()}
        for nats in (0.5, 1) if name.startswith("ppo") else ():
            place = int(np.searchsorted(at, nats))
            found[f"{title}, at KL {nats:g}: share of the most"] = {
                seed: float(gain[place] - gains[name][seed][place])
                for seed, gain in gains["dpo"].items()
            }
    return found


def figures(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, drawing.Drawing]:
    """Gain against KL, as far as all seeds have versions."""
    at, found = curves(rows, rule)
    named = dict[str, Any]()
    for name, own in found.items():
        reach = min(max(one)[0] for row in rows if row["method"] == name for one in [row["values"]])
        named[rule["methods"][name]["name"]] = [gain[at <= reach] for gain in own.values()]
    title = "Gain in reward against KL from the reference"
    return {title: chart(at.tolist(), named, "KL, nats", "share of the most at 2 nats")}
