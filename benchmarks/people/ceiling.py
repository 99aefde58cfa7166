"""What so much noise allows: the accuracy of a logistic regression on such labels, simulated before anything trains.

One who knows that a response is a bag of words learns only their values, and a reward model can hardly do better. One
who takes a word in another place for another word has four times as much to learn. The reward model should be between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from alignkit_plugins.people.items import Item
from benchmarks.people import words
from benchmarks.people.crowd import AGREEMENT, Crowd, Noise, accuracy_of, crowd_for

MARGIN_SIZES = {"none": (0.0, 0.0, 0.0, 0.0), "llama2-small": (0, 1 / 3, 2 / 3, 1), "llama2-large": (0, 1, 2, 3)}
PRECISION = 1.0  # of the normal prior of each weight
Numbers = NDArray[np.float64]
Features = Callable[[Sequence[Item]], Numbers]
Margin = Literal["none", "llama2-small", "llama2-large"]
Votes = Literal["soft", "majority"]


@dataclass(frozen=True)
class Setting:
    """How labels are collected and learned: `overlap` annotators label each of `pairs` pairs."""

    pairs: int = 200
    overlap: int = 1
    votes: Votes = "soft"
    noise: Noise = "equal"
    margin: Margin = "none"

    @property
    def labels(self) -> int:
        return self.pairs * self.overlap

    def crowd(self, seed: int) -> Crowd:
        """Who labels: the cuts and the steepness suit all pairs that may be drawn."""
        return crowd_for([words.gap(item) for item in words.pairs(2000, seed=0)], self.noise, AGREEMENT, seed)


@dataclass(frozen=True)
class Expected:
    """Accuracy by the truth: the mean over simulations, and the standard deviation of one."""

    mean: float
    deviation: float


def expected(setting: Setting, features: Features, fresh: int = 500, simulations: int = 100) -> Expected:
    """The accuracy of a logistic regression on fresh pairs, over simulations with pairs and errors of their own."""
    crowd = setting.crowd(0)
    found = [_accuracy(setting, crowd, features, fresh, seed) for seed in range(10_000, 10_000 + simulations)]
    return Expected(float(np.mean(found)), float(np.std(found, ddof=1)))


def noisy(setting: Setting, accuracy: float, gaps: Sequence[float]) -> float:
    """The share of fresh noisy labels that a model agrees with if it is right this often about pairs with these gaps.

    a p + (1 - a) (1 - p), where an annotator is right with probability p; with `near`, this holds if the model's errors
    do not depend on the gap, so it is a lower bound.
    """
    if setting.noise == "none":
        return accuracy
    p = right_on_average(setting.crowd(0), gaps)
    return accuracy * p + (1 - accuracy) * (1 - p)


def right_on_average(crowd: Crowd, gaps: Sequence[float]) -> float:
    """How often an annotator is right about pairs with these gaps: what no model can exceed on noisy labels."""
    from scipy.special import expit

    return float(np.mean(expit(crowd.scale * np.abs(gaps)))) if crowd.noise == "near" else accuracy_of(crowd.agreement)


def _accuracy(setting: Setting, crowd: Crowd, features: Features, fresh: int, seed: int) -> float:
    items = words.pairs(setting.pairs + fresh, seed)
    gaps = np.array([words.gap(item) for item in items])
    counts, n = features(items), setting.pairs
    luck = np.random.default_rng([seed, 1]).random((n, setting.overlap))
    seen = np.array([[crowd.seen(gap, each) for each in row] for gap, row in zip(gaps[:n], luck, strict=True)])
    share = np.mean(seen > 0, axis=1)
    if setting.votes == "majority":
        share = np.round(share)
    sizes = np.array(MARGIN_SIZES[setting.margin])[np.searchsorted(crowd.cuts, np.abs(seen[:, 0]))]
    weights = _fitted(counts[:n], share, sizes)
    return float(np.mean((counts[n:] @ weights > 0) == (gaps[n:] > 0)))


def _fitted(
    counts: NDArray[np.float64], share: NDArray[np.float64], margin: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weights at the most likely place: [features]. The loss is the reward model's, plus the prior."""
    from scipy.optimize import minimize

    def loss(weights: Numbers) -> float:
        score = counts @ weights
        rank = share * np.logaddexp(0, margin - score) + (1 - share) * np.logaddexp(0, margin + score)
        return float(rank.sum() + PRECISION * weights @ weights / 2)

    found: Numbers = minimize(loss, np.zeros(counts.shape[1]), method="L-BFGS-B").x
    return found
