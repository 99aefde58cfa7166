"""The experiment: one of three people answers at random, and a reward model learns from all or from the reliable."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from alignkit.notebook import run
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.records import Plan
from alignkit_plugins.people.rows import store_rows
from alignkit_plugins.people.store import Store
from alignkit_plugins.steps.feedback import Feedback
from benchmarks.people import words
from benchmarks.people.crowd import Crowd, labeled_store
from benchmarks.people.noise import FRESH, TRAINING

PAIRS, GOLD = 150, 30
AGREEMENT = 0.82  # of the two others, so each is right in 90%
# Whose labels a reward model learns from.
READERS: Mapping[str, Mapping[str, Any]] = {
    "two": {"annotators": ["ann", "bob"]},
    "all": {},
    "min_gold": {"min_gold": 0.7},
}


def labeled_by_three(path: Path, seed: int) -> list[Item]:
    """A store of pairs that three people labeled, of whom cleo guesses, with gold items; other pairs, to judge by."""
    items = words.pairs(PAIRS + GOLD + FRESH, seed)
    learned, right, fresh = items[:PAIRS], items[PAIRS : PAIRS + GOLD], items[PAIRS + GOLD :]
    gold = [replace(item, gold={"better": int(words.gap(item) < 0)}) for item in right]
    with Store.open(path, new=True) as store:
        store.set_plan(Plan(seed=seed, overlap=3))
        store.add([*learned, *gold])
        Crowd(agreement=AGREEMENT, seed=seed, guessing=("cleo",)).label(store, words.gap)
    return fresh


def scored(path: Path, fresh: Sequence[Item], options: Mapping[str, Any]) -> float:
    """The accuracy on fresh pairs of a scorer that knows words by their places: a logistic regression on the labels."""
    form = Feedback(Feedback.Options(**options))
    groups = [group for _, row in form.rows(store_rows(path)) for group in form.groups(row)]
    found = [(group, pair) for group in groups for pair in group.pairs or ()]
    learned = [replace(fresh[0], responses=tuple(each.text for each in group.responses)) for group, _ in found]
    x = words.placed_words(learned) * np.array([[1 if pair.better == 0 else -1] for _, pair in found])
    p, weights = np.array([pair.p for _, pair in found]), np.zeros(x.shape[1])
    for _ in range(500):  # ascends the penalized likelihood; 0.5 is below its curvature for features of -1, 0 and 1
        weights += 0.5 * (x.T @ (p - 1 / (1 + np.exp(-x @ weights))) / len(x) - 0.01 * weights)
    right = (words.placed_words(fresh) @ weights > 0) == [words.gap(item) > 0 for item in fresh]
    return float(np.mean(right))


def measure(seed: int, folder: Path) -> dict[str, float]:
    """The accuracy of a reward model on fresh pairs, by whose labels it learned from. folder: a new one."""
    folder.mkdir(parents=True)
    fresh = labeled_by_three(folder / "labels.feedback", seed)
    labeled_store(folder / "truth.feedback", fresh, Crowd(noise="none", seed=seed), words.gap)
    rewards = {
        name: {
            "algorithm": "reward_model",
            "data": {"feedback": {"path": "labels.feedback", **options}},
            **TRAINING,
        }
        for name, options in READERS.items()
    }
    judged = {"step": "evaluate_reward", "rewards": list(rewards), "pairs": "truth.feedback"}
    model = {"base": "tiny", "dtype": "float32", "lora": "none"}
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({"model": model, "seed": seed, "stages": {**rewards, "judged": judged}}), "utf-8")
    done = run(file, out=folder / "run")
    found = json.loads((done["judged"].folder / "reward_evaluation.json").read_text(encoding="utf-8"))["rewards"]
    return {name: found[name]["correct"] / found[name]["pairs"] for name in READERS}
