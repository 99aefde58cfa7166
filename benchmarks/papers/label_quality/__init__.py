"""What wrong labels cost (Lee et al. 2023): reward models that learn from pairs of which a share is
labeled right, by gold, and the best of 16 answers by each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignkit_plugins.report import drawing
from benchmarks.papers.claim import Row, chart
from benchmarks.papers.heads import Head, Step, accuracy, answers, learn


def compute(row: Row, rule: Mapping[str, Any], folder: Path) -> Any:
    """Of each prompt that is judged: how much of the gain that is possible the best by the reward
    model has, and the share of pairs in the right order.
    """
    assert row.rate is not None
    pool = answers(folder.parent)
    draw = np.random.default_rng(row.seed)  # the same pairs for all shares
    first, last = rule["prompts"]["training"]
    steps = list[Step]()
    better, worse = list[int](), list[int]()
    right = rule["methods"][row.method]["right"]
    for prompt in draw.permutation(np.arange(first, last)):
        for one, other in draw.permutation(pool.gold.shape[1]).reshape(-1, 2):
            gap = pool.gold[prompt, one] - pool.gold[prompt, other]
            first_wins = (gap > 0) == (draw.random() < right)
            pair = (one, other) if first_wins else (other, one)
            if gap:
                better.append(prompt * pool.gold.shape[1] + pair[0])
                worse.append(prompt * pool.gold.shape[1] + pair[1])
    for at in range(0, len(better), rule["batch"]):
        place = slice(at, at + rule["batch"])
        steps.append(Step(better[place], worse[place], [1.0] * len(better[place])))
    head = Head(pool.states.shape[-1], row.seed)
    learn(head, pool.states.flatten(0, 1), steps, row.rate)
    judged = slice(*rule["prompts"]["tuning" if row.tuning else "shown"])
    scores, gold = head(pool.states[judged]).detach().double().numpy(), pool.gold[judged]
    best = np.take_along_axis(gold, scores.argmax(1)[:, None], 1)[:, 0]
    gain = (best - gold.mean(1)) / (gold.max(1) - gold.mean(1))
    return {"gain": gain.round(4).tolist(), "accuracy": accuracy(scores, gold).round(4).tolist()}


# What they say


def measures(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, dict[int, Any]]:
    """By share of right labels, seed and prompt: the gain of best of 16 as a share of what is
    possible, and by how much the reward model is right more often than its labels.
    """
    found = dict[str, dict[int, Any]]()
    for row in rows:
        name, seed, values = row["method"], row["seed"], row["values"]
        found.setdefault(name, {})[seed] = values["gain"]
        more = np.array(values["accuracy"]) - rule["methods"][name]["right"]
        found.setdefault(f"{name}, above its labels", {})[seed] = more.tolist()
    return found


def after(rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]) -> dict[str, dict[int, Any]]:
    """What wrong labels cost, as a share of the gain without, and what right ones could give."""
    found = measures(rows, rule)
    whole = float(np.mean([*found["100"].values()]))
    lost, more = dict[int, Any](), dict[int, Any]()
    for seed, gain in found["100"].items():
        lost[seed] = np.subtract(gain, found["80"][seed]) / whole
        right = np.add(found["100, above its labels"][seed], rule["methods"]["100"]["right"])
        more[seed] = right - rule["methods"]["73"]["right"]
    return {
        "gain that 80% right labels lose, share of that of 100%": lost,
        "right by the reward model of 100%, minus 73%, share of pairs": more,
    }


def figures(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, drawing.Drawing]:
    """Gain and accuracy against the share of right labels."""
    shares = {method["right"]: name for name, method in rule["methods"].items()}
    at = sorted(shares)
    named = {"best of 16, share of the possible gain": "gain", "reward model, accuracy": "accuracy"}
    lines: dict[str, Any] = {"labels, accuracy": [at]}
    for title, key in named.items():
        found = dict[int, dict[float, float]]()
        for row in rows:
            right = rule["methods"][row["method"]]["right"]
            found.setdefault(row["seed"], {})[right] = float(np.mean(row["values"][key]))
        lines[title] = [[one[right] for right in at] for one in found.values()]
    percent = [100 * one for one in at]
    title = "What reward models make of labels of which a share is right"
    return {title: chart(percent, lines, "labels that are right, %", "share")}
