"""What answers look like, and what has departed from the first iteration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from alignkit import Group, Response
from alignkit_plugins.monitors.reward_hacking import Drift

WORDS = ("red", "green", "blue", "one", "two", "three", "sun", "moon")


def answer(prompt: str, text: str, tokens: int, surprise: float) -> Group:
    response = Response(text, tokens=(1,) * tokens, logprobs=(-surprise,) * tokens)
    return Group(({"role": "user", "content": prompt},), (response,), id=prompt)


def made(
    number: int, lengths: Sequence[int], more: str = "", samples: int = 2, surprise: float = 2.0
) -> list[Group]:
    """Answers of random words with these lengths. more: words that each answer ends with."""
    rng = np.random.default_rng(number)
    groups = []
    for place, length in enumerate(np.repeat(lengths, samples)):
        count = max(1, int(length + rng.integers(-2, 3)))
        text = " ".join([*map(str, rng.choice(WORDS, count)), *more.split()])
        groups.append(
            answer(f"p{place // samples}", text, count, surprise + float(rng.normal(0, 0.1)))
        )
    return groups


LONG, SHORT = [12 + n % 5 for n in range(30)], [5 + n % 5 for n in range(30)]


def test_metrics_of_a_look() -> None:
    metrics, warnings = Drift(5).add(
        [answer("p", "yes yes maybe", 4, 0.5), answer("p", "no way out", 2, 1.5)]
    )
    assert not warnings
    assert metrics["sampled_entropy"] == pytest.approx(1.0)
    assert metrics["distinct_1"] == pytest.approx(5 / 6) and metrics["distinct_2"] == pytest.approx(
        1.0
    )
    assert metrics["self_bleu"] == 0.0 and metrics["repetition"] == 0.0
    assert "length" not in metrics  # of which `response_tokens` is the mean


def test_a_departure_is_said_once() -> None:
    drift = Drift(4)
    drift.add(made(1, LONG))
    _, first = drift.add(made(2, SHORT))
    _, second = drift.add(made(3, SHORT))
    assert first[0].startswith("answers are shorter than in the first iteration")
    assert first[0].endswith("tokens") and second == []


def test_no_departure_without_a_change() -> None:
    drift = Drift(10)
    assert not any(drift.add(made(number, LONG))[1] for number in range(1, 11))


@pytest.mark.parametrize(
    ("more", "surprise", "words"),
    [
        ("and so on and so on and so on", 2.0, "answers repeat themselves more"),
        ("", 1.0, "the policy is surer of its words"),
    ],
)
def test_each_departure_has_a_name(more: str, surprise: float, words: str) -> None:
    drift = Drift(2)
    drift.add(made(1, LONG))
    _, warnings = drift.add(made(2, LONG, more=more, surprise=surprise))
    assert any(text.startswith(words) for text in warnings)
