"""What answers look like, what has departed from the first iteration, and what most of the gain follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from alignkit_monitors.drift import Drift
from alignkit_monitors.estimates import change
from alignkit_monitors.snapshot import Answer, Look

WORDS = ("red", "green", "blue", "one", "two", "three", "sun", "moon")


def made(
    number: int,
    lengths: Sequence[int],
    reward: Callable[[int, float], float] = lambda length, noise: noise,
    more: str = "",
    samples: int = 2,
    surprise: float = 2.0,
) -> Look:
    """Answers of random words with these lengths. more: words that each answer ends with."""
    rng = np.random.default_rng(number)
    prompts: dict[str, list[Answer]] = {}
    for place, length in enumerate(np.repeat(lengths, samples)):
        count = max(1, int(length + rng.integers(-2, 3)))
        text = " ".join([*map(str, rng.choice(WORDS, count)), *more.split()])
        noise = float(rng.normal(0, 0.3))
        answer = Answer(text, count, reward(count, noise), None, surprise + float(rng.normal(0, 0.1)))
        prompts.setdefault(f"p{place // samples}", []).append(answer)
    return Look(number, prompts)


LONG, SHORT = [12 + n % 5 for n in range(30)], [5 + n % 5 for n in range(30)]


def test_metrics_of_a_look() -> None:
    answers = [Answer("yes yes maybe", 4, 1.0, None, 0.5), Answer("no way out", 2, 0.0, None, 1.5)]
    metrics, warnings = Drift(5).add(Look(1, {"p": answers}))
    assert not warnings
    assert metrics["hedges"] == pytest.approx((1 / 3 + 0) / 2)
    assert metrics["sampled_entropy"] == pytest.approx(1.0)
    assert metrics["distinct_1"] == pytest.approx(5 / 6) and metrics["distinct_2"] == pytest.approx(1.0)
    assert metrics["self_bleu"] == 0.0 and metrics["repetition"] == metrics["confidence"] == 0.0
    assert metrics["reward_with/length"] == pytest.approx(1.0)
    assert metrics["reward_with/hedges"] == pytest.approx(1.0)
    assert "reward_with/repetition" not in metrics  # it does not vary
    assert not {"length", "reward"} & metrics.keys()  # which the stage logs already


def test_correlations_are_within_prompts() -> None:
    """Hard prompts have long answers, and longer answers to the same prompt are better."""
    pairs = [(50, -9.0), (60, -8.0), (5, 3.0), (9, 4.0)]
    answers = [Answer("x", tokens, reward) for tokens, reward in pairs]
    metrics, _ = Drift(2).add(Look(1, {"hard": answers[:2], "easy": answers[2:]}))
    dx, dy = np.array([-5, 5, -2, 2]), np.array([-0.5, 0.5, -0.5, 0.5])
    assert metrics["reward_with/length"] == pytest.approx(
        float((dx * dy).sum() / np.sqrt((dx**2).sum() * (dy**2).sum()))
    )


def test_one_answer_to_each_prompt_has_no_correlation() -> None:
    metrics, _ = Drift(2).add(made(1, LONG, samples=1))
    assert not any(name.startswith("reward_with/") for name in metrics) and "self_bleu" not in metrics


def test_a_departure_is_said_once() -> None:
    drift = Drift(4)
    drift.add(made(1, LONG))
    _, first = drift.add(made(2, SHORT))
    _, second = drift.add(made(3, SHORT))
    assert [text.partition(":")[0] for text in first] == ["answers are shorter than in the first iteration"]
    assert first[0].endswith("tokens") and second == []


def test_no_departure_without_a_change() -> None:
    drift = Drift(10)
    assert not any(drift.add(made(number, LONG))[1] for number in range(1, 11))


@pytest.mark.parametrize(
    ("more", "surprise", "words"),
    [
        ("perhaps maybe", 2.0, "answers hedge more"),
        ("certainly definitely", 2.0, "answers sound more confident"),
        ("and so on and so on and so on", 2.0, "answers repeat themselves more"),
        ("", 1.0, "the policy is surer of its words"),
    ],
)
def test_each_departure_has_a_name(more: str, surprise: float, words: str) -> None:
    drift = Drift(2)
    drift.add(made(1, LONG))
    _, warnings = drift.add(made(2, LONG, more=more, surprise=surprise))
    assert any(text.startswith(words) for text in warnings)


def test_a_reward_that_begins_to_follow_length() -> None:
    drift = Drift(2)
    drift.add(made(1, LONG))
    _, warnings = drift.add(made(2, LONG, lambda length, noise: length + noise))
    assert len(warnings) == 1 and warnings[0].startswith("the reward follows length more than in the first iteration")


def test_reward_bought_with_brevity() -> None:
    drift = Drift(2)
    drift.add(made(1, LONG, lambda length, noise: -length + noise))
    drift.add(made(2, SHORT, lambda length, noise: -length + noise))
    (sentence,) = drift.bought()
    assert "of the reward's gain" in sentence and "came with brevity: 14 to 6.92 tokens" in sentence


def test_a_gain_at_every_length_is_not_bought() -> None:
    drift = Drift(2)
    drift.add(made(1, LONG, lambda length, noise: noise))
    drift.add(made(2, SHORT, lambda length, noise: 5 + noise))
    assert drift.bought() == []


def test_a_small_part_of_a_gain_is_not_worth_a_word() -> None:
    """Brevity explains 1.4 of 9.4."""
    drift = Drift(2)
    drift.add(made(1, LONG, lambda length, noise: -0.2 * length + noise / 9))
    drift.add(made(2, SHORT, lambda length, noise: 8 - 0.2 * length + noise / 9))
    assert drift.bought() == []


def test_no_clear_gain_is_not_bought() -> None:
    """Shorter answers are better, and worse in another way: the reward rose by 0.04, which may be chance."""
    drift = Drift(2)
    drift.add(made(1, LONG, lambda length, noise: -length + noise))
    assert drift.bought() == []
    drift.add(made(2, SHORT, lambda length, noise: -7 - length + noise))
    gain = change(drift._first["reward"], drift._last["reward"])
    assert gain is not None and gain.low < 0 < gain.mean
    assert drift.bought() == []
