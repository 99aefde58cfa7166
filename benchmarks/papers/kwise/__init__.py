"""Rankings of 9 answers as one element of a batch, against the same comparisons shuffled (Ouyang et
al. 2022, section 3.5): reward models that see each comparison once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignkit import functional as F
from alignkit_plugins.report import drawing
from benchmarks.papers.claim import Row, chart
from benchmarks.papers.heads import Answers, Head, Step, accuracy, answers, learn, nats


def compute(row: Row, rule: Mapping[str, Any], folder: Path) -> Any:
    """After each pass, of each prompt that is judged, the log-likelihood of gold's order of its
    pairs, and the share of them in that order.
    """
    assert row.rate is not None
    pool, draw = answers(folder.parent), np.random.default_rng(row.seed)
    rankings = ranked(pool, rule, draw)
    judged = slice(*rule["prompts"]["tuning" if row.tuning else "shown"])
    head, gold = Head(pool.states.shape[-1], row.seed), pool.gold[judged]
    found: dict[str, list[Any]] = {"nats": [], "accuracy": []}
    for _ in range(1 if row.tuning else rule["passes"]):
        steps = [*in_steps(rankings, rule["methods"][row.method], draw)]
        learn(head, pool.states.flatten(0, 1), steps, row.rate)
        scores = head(pool.states[judged]).detach().double().numpy()
        found["nats"].append(nats(scores, gold).round(4).tolist())
        found["accuracy"].append(accuracy(scores, gold).round(4).tolist())
    return found


Comparison = tuple[int, int, int]  # the prompt, and the places of the better and the worse text


def ranked(
    pool: Answers, rule: Mapping[str, Any], draw: np.random.Generator
) -> list[list[Comparison]]:
    """The comparisons of each training prompt: all pairs of K of its answers, drawn at random, but
    of ties.
    """
    found, width = list[list[Comparison]](), pool.gold.shape[1]
    for prompt in draw.permutation(np.arange(*rule["prompts"]["training"])).tolist():
        own = list[Comparison]()
        for one, other in combinations(draw.permutation(width)[: rule["k"]].tolist(), 2):
            gap = pool.gold[prompt, one] - pool.gold[prompt, other]
            better, worse = (one, other) if gap > 0 else (other, one)
            if gap:
                own.append((prompt, prompt * width + better, prompt * width + worse))
        found.append(own)
    return found


def in_steps(
    rankings: Sequence[Sequence[Comparison]], method: Mapping[str, Any], draw: np.random.Generator
) -> Iterator[Step]:
    """One pass. `prompts`: whole rankings, that many in a step, each with a weight of 1. `pairs`:
    all comparisons shuffled, that many in a step.
    """
    if "prompts" in method:
        order = draw.permutation(len(rankings)).tolist()
        parts = [
            [one for at in order[first : first + method["prompts"]] for one in rankings[at]]
            for first in range(0, len(order), method["prompts"])
        ]
    else:
        every = [one for own in rankings for one in own]
        order = draw.permutation(len(every)).tolist()
        size = method["pairs"]
        parts = [
            [every[at] for at in order[first : first + size]]
            for first in range(0, len(order), size)
        ]
    for part in parts:
        prompts, better, worse = zip(*part, strict=True)
        weights = [1.0] * len(part)
        if "prompts" in method:
            weights = F.kwise_weights(torch.tensor(prompts)).tolist()
        yield Step(better, worse, weights)


# What they say


def measures(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, dict[int, Any]]:
    """By method, seed and prompt, after one pass: the log-likelihood, and the accuracy. `again` is
    the log-likelihood after all passes.
    """
    found = dict[str, dict[int, Any]]()
    for row in rows:
        name, seed, values = row["method"], row["seed"], row["values"]
        found.setdefault(name, {})[seed] = values["nats"][0]
        found.setdefault(f"{name}, accuracy", {})[seed] = values["accuracy"][0]
        found.setdefault(f"{name}, again", {})[seed] = values["nats"][-1]
    return found


def after(rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]) -> dict[str, dict[int, Any]]:
    """What each method loses after the pass that is best on average; and rankings against as many
    steps, after all passes.
    """
    found, last = dict[str, dict[int, Any]](), dict[str, dict[int, Any]]()
    for name, method in rule["methods"].items():
        own = {
            row["seed"]: np.array(row["values"]["nats"]) for row in rows if row["method"] == name
        }
        best = int(np.mean([*own.values()], axis=(0, 2)).argmax())
        title = f"{method['name']}: pass {best + 1}, its best, minus pass {rule['passes']}, nats"
        found[title] = {seed: one[best] - one[-1] for seed, one in own.items()}
        last[name] = {seed: one[-1] for seed, one in own.items()}
    both = {seed: one - last["equal"][seed] for seed, one in last["kwise"].items()}
    found[f"rankings minus 72 in a step, after pass {rule['passes']}, nats"] = both
    return found


def figures(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, drawing.Drawing]:
    """The loss on new prompts, and the accuracy, after each pass."""
    at = [*range(1, rule["passes"] + 1)]
    found = dict[str, drawing.Drawing]()
    named = {
        "Log loss of comparisons of new prompts": ("nats", -1, "log loss, nats"),
        "Comparisons of new prompts in the right order": ("accuracy", 1, "share of pairs"),
    }
    for title, (key, sign, up) in named.items():
        lines = dict[str, Any]()
        for row in rows:
            name = rule["methods"][row["method"]]["name"]
            means = [sign * float(np.mean(one)) for one in row["values"][key]]
            lines.setdefault(name, []).append(means)
        found[title] = chart(at, lines, "passes", up)
    return found
