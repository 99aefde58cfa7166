"""Simulated policies: answers of words, whose frequencies a test chooses, and looks at them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from alignkit_monitors.snapshot import Answer, Look

VALUES = {
    **{"great": 1.0, "good": 0.6, "nice": 0.3, "okay": 0.0, "dull": -0.3, "poor": -0.6, "awful": -1.0, "please": 0.0},
    **dict.fromkeys(("the", "a", "of", "and"), 0.0),
}
Score = Callable[[list[str], float], float | None]  # words, noise


def look(
    iteration: int,
    weights: Mapping[str, float],
    reward: Score,
    gold: Score,
    *,
    seed: int = 0,
    prompts: int = 60,
    samples: int = 2,
    length: int = 6,
    topics: bool = True,
) -> Look:
    """Answers of `length` words drawn by weights. topics: each prompt has a word of its own, and a difficulty."""
    rng = np.random.default_rng([seed, iteration])
    words, p = list(weights), np.array(list(weights.values())) / sum(weights.values())
    found = {}
    for prompt in range(prompts):
        answers = []
        for _ in range(samples):
            text = [str(word) for word in rng.choice(words, length, p=p)]
            noise, ease = float(rng.normal(0, 0.5)), 3.0 * (prompt % 7) * topics
            scores = [None if (score := each(text, noise)) is None else score + ease for each in (reward, gold)]
            shown = [*text, f"topic{prompt % 5}"] if topics else text
            answers.append(Answer(" ".join(shown), len(shown), scores[0], scores[1], 1.0))
        found[f"p{prompt}"] = answers
    return Look(iteration, found)


def value(words: list[str], noise: float = 0.0) -> float:
    return sum(VALUES.get(word, 0.0) for word in words)


def honest(words: list[str], noise: float) -> float:
    """The value as an imperfect reward model sees it."""
    return value(words) + 2 * noise


def hacked(words: list[str], noise: float) -> float:
    return honest(words, noise) + 2 * words.count("please")
