"""Overoptimization (Gao et al. 2023): what best of N and PPO gain by the true reward, while they
maximize a reward model of pairs with wrong labels; exact, over all answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignkit import Group, Pair
from alignkit.data.group import read_groups, write_groups
from alignkit_plugins.command_line.words import read_words
from alignkit_plugins.report import drawing
from alignkit_plugins.serving.files import answer_and_score
from benchmarks.papers.claim import Row, lines_of, run_stages
from benchmarks.papers.enumerable import (
    Problem,
    best_of,
    kl,
    make,
    normalized,
    question,
    smooth,
    write_prompts,
    write_reward,
)

Points = Sequence[
    Sequence[float]
]  # (KL, true reward, proxy), the last two in deviations of the reference
TURN = 0.1  # deviations below its own peak, where a curve of one seed has turned
OPTIMIZERS = {"best": "best of N", "ppo": "PPO"}


def compute(row: Row, rule: Mapping[str, Any], folder: Path) -> Any:
    """By optimizer the points of best of each N, and of PPO's kept versions."""
    method = rule["methods"][row.method]
    letters, length, scale = rule["answers"]
    problem = make(folder, letters, length, scale, seed=row.seed)
    gold = normalized(smooth(problem), problem.reference)
    words, reward = [f"seed={row.seed}", *method.get("words", ())], "reward"
    write_prompts(problem, 64)
    if "pairs" not in method:
        proxy = planted(problem, gold, method["noise"]) if "noise" in method else gold
        write_reward(problem, values=proxy)
        known = {"python": {"path": str(folder / "reward.py"), "function": "reward"}}
        words += ["~stages.reward", f"stages.ppo.reward={json.dumps(known)}"]
    else:
        write_pairs(problem, gold, method["pairs"], rule["wrong"])
        run_stages("overoptimization", folder, folder / "run", [reward], words)
        proxy = normalized(scores(problem, folder / "run" / reward), problem.reference)
    run_stages("overoptimization", folder, folder / "run", ["ppo"], words)
    policies = {"best": [best_of(problem.reference, proxy, n) for n in rule["best_of"]]}
    kept = folder / "run" / "ppo" / "kept"
    policies["ppo"] = [problem.distribution(kept / str(at)) for at in rule["versions"]]
    return {
        name: [point(policy, problem.reference, gold, proxy) for policy in own]
        for name, own in policies.items()
    }


def point(policy: Tensor, reference: Tensor, *rewards: Tensor) -> list[float]:
    """KL(policy || reference), and the mean of each reward."""
    means = (float((policy * reward).sum()) for reward in rewards)
    return [round(kl(policy, reference), 6), *(round(mean, 6) for mean in means)]


def planted(problem: Problem, gold: Tensor, noise: float) -> Tensor:
    """The true reward, but for the rarer half of answers, where it is this much noise."""
    draw = torch.Generator().manual_seed(problem.seed)
    drawn = noise * torch.randn(len(gold), generator=draw, dtype=torch.float64)
    return torch.where(problem.reference < problem.reference.median(), drawn, gold)


def write_pairs(problem: Problem, gold: Tensor, count: int, wrong: float) -> None:
    """Pairs of the reference's own answers, with a share of wrong labels."""
    draw = torch.Generator().manual_seed(problem.seed)
    both = torch.multinomial(problem.reference, 2 * count, replacement=True, generator=draw)
    turned, rows = torch.rand(count, generator=draw) < wrong, list[Group]()
    for at, (one, other) in enumerate(both.reshape(2, -1).T.tolist()):
        first = bool(gold[one] > gold[other]) != bool(turned[at])
        order = (one, other) if first else (other, one)
        responses = [problem.response(problem.answers[index]) for index in order]
        if one != other:
            rows.append(Group(question(at), tuple(responses), (Pair(0, 1),), id=str(at)))
    write_groups(problem.folder / "pairs.jsonl", rows)


def scores(problem: Problem, reward: Path) -> Tensor:
    """What a reward model gives to every answer [answers]."""
    file, out = problem.folder / "answers.jsonl", problem.folder / "scores.jsonl"
    rows = list[Group]()
    for at, answer in enumerate(problem.answers):
        rows.append(Group(question(0), (problem.response(answer),), id=str(at)))
    write_groups(file, rows)
    base = [f"model.base={problem.base}", "model.lora=none", "model.dtype=float32"]
    answer_and_score(read_words([], data=str(file), rewards=[str(reward)]), base, out)
    found = list[float]()
    for group in read_groups(out):
        (score,) = group.responses[0].scores.values()
        assert score is not None
        found.append(score)
    return torch.tensor(found, dtype=torch.float64)


# What the points say


def measures(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, dict[int, float]]:
    """By `METHOD OPTIMIZER, peak` and `..., end` and seed the true reward. The peak is where the mean
    of all other seeds is highest, so that no seed chooses its own.
    """
    found = dict[str, dict[int, float]]()
    for method in rule["methods"]:
        for name in OPTIMIZERS:
            own = {row["seed"]: row["values"][name] for row in rows if row["method"] == method}
            true = np.array([[point[1] for point in points] for points in own.values()])
            others = true.sum(0) - true
            for at, seed in enumerate(own):
                peak = float(true[at, others[at].argmax()])
                found.setdefault(f"{method} {name}, peak", {})[seed] = peak
                found.setdefault(f"{method} {name}, end", {})[seed] = float(true[at, -1])
    return found


def after(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, dict[int, float]]:
    """The share of seeds whose true reward ends clearly below its own peak."""
    found = dict[str, dict[int, float]]()
    for row in rows:
        method = rule["methods"][row["method"]].get("name", "planted noise")
        for name, title in OPTIMIZERS.items():
            true = [point[1] for point in row["values"][name]]
            own = found.setdefault(f"{title}, {method}: turns, share of seeds", {})
            own[row["seed"]] = float(max(true) - true[-1] > TURN)
    return found


def figures(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, drawing.Drawing]:
    """True reward and proxy against KL, for each optimizer: means over seeds at each N or version."""
    found = dict[str, drawing.Drawing]()
    for name, title in OPTIMIZERS.items():
        lines = dict[str, drawing.Line]()
        for method, how in rule["methods"].items():
            own = [row["values"][name] for row in rows if row["method"] == method]
            points = np.array([[[0.0, 0.0, 0.0], *one] for one in own])  # [seeds, points, 3]
            drawn = {f"true, {how.get('name', 'planted noise')}": points[..., 1].tolist()}
            if "pairs" in how:
                drawn[f"proxy, {how['name']}"] = points[..., 2].tolist()
            lines |= lines_of(points[..., 0].mean(0).tolist(), drawn)
        ticks = drawing.Scale([0, *(line.x[-1] for line in lines.values())], 0).named()
        up = "reward, deviations of the reference"
        found[f"Gain in reward by {title}, against KL"] = drawing.curves(
            lines, "KL, nats", ticks=ticks, up=up
        )
    return found
