"""The experiment: simulated people label a store, a recipe trains a reward model on it, and fresh pairs judge it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from alignkit.notebook import run
from benchmarks.people import words
from benchmarks.people.ceiling import Setting
from benchmarks.people.crowd import Crowd, labeled_store

FRESH = 500  # pairs
# Chosen with other seeds (1000 to 1002), on labels without and with errors.
TRAINING = {"epochs": 4, "learning_rate": 1e-3, "max_length": 128}
SETTINGS = (
    Setting(),
    Setting(noise="none"),
    Setting(67, 3),
    Setting(67, 3, "majority"),
    Setting(200, 3),
    Setting(600),
    Setting(noise="near"),
    Setting(noise="near", margin="llama2-small"),
    Setting(noise="near", margin="llama2-large"),
)


@dataclass(frozen=True)
class Measured:
    """A reward model's accuracy on the same fresh pairs: by the truth, and by people who err like its annotators."""

    truth: float
    noisy: float


def measure(setting: Setting, seed: int, folder: Path) -> Measured:
    """Label, train and judge once. folder: a new one for the stores and the run. Raises AlignkitError."""
    folder.mkdir(parents=True)
    items = words.pairs(setting.pairs + FRESH, seed)
    crowd = setting.crowd(seed)
    learned, fresh = items[: setting.pairs], items[setting.pairs :]
    labeled_store(folder / "labels.feedback", learned, crowd, words.gap, setting.overlap)
    labeled_store(folder / "noisy.feedback", fresh, replace(crowd, names=("dora", "eve")), words.gap)
    labeled_store(folder / "truth.feedback", fresh, Crowd(noise="none", seed=seed), words.gap)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(setting, seed), sort_keys=False), encoding="utf-8")
    done = run(file, out=folder / "run")
    return Measured(*(_accuracy(done[stage].folder) for stage in ("by_truth", "by_people")))


def recipe(setting: Setting, seed: int) -> dict[str, object]:
    """One reward model on a store, judged by two others."""
    data = {"feedback": {"path": "labels.feedback", "votes": setting.votes}}
    return {
        "model": {"base": "tiny", "dtype": "float32", "lora": "none"},
        "seed": seed,
        "stages": {
            "reward": {"algorithm": {"reward_model": {"margin": setting.margin}}, "data": data, **TRAINING},
            "by_truth": {"step": "evaluate_reward", "rewards": ["reward"], "pairs": "truth.feedback"},
            "by_people": {"step": "evaluate_reward", "rewards": ["reward"], "pairs": "noisy.feedback"},
        },
    }


def _accuracy(folder: Path) -> float:
    found = json.loads((folder / "reward_evaluation.json").read_text(encoding="utf-8"))["rewards"]["reward"]
    return float(found["correct"] / found["pairs"])
