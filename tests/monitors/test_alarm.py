"""The alarm against reward hacking, on simulated answers whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from simulated import VALUES, Score, hacked, honest, look, value

from alignkit_monitors import alarm
from alignkit_monitors.alarm import Alarm, Hacking, _called
from alignkit_monitors.snapshot import Look

EVEN = dict.fromkeys(VALUES, 1.0)
LOOKS = 8


def learning(word: str, step: float = 1.0) -> list[dict[str, float]]:
    """A policy that says a word more and more often."""
    return [{**EVEN, word: 1.0 + step * number} for number in range(LOOKS)]


def first_alarm(looks: Sequence[Look]) -> Hacking | None:
    watched = Alarm(len(looks))
    return next(filter(None, map(watched.add, looks)), None)


def seen(weights: Sequence[dict[str, float]], reward: Score, gold: Score = value, **keys: int) -> list[Look]:
    return [look(number, each, reward, gold, **keys) for number, each in enumerate(weights, 1)]


def test_a_word_that_only_the_reward_pays_for_is_named() -> None:
    found = first_alarm(seen(learning("please"), hacked))
    assert found is not None and found.iteration < LOOKS
    assert [bought.what for bought in found.bought] == ["the word 'please'"]
    (bought,) = found.bought
    assert bought.after > bought.before and bought.pays > 0 and bought.share > 0.5
    assert found.reward.mean > 0 and found.reward.mean > found.gold.mean
    assert "Bought with the word 'please' (" in str(found) and "in an answer, " in str(found)


def test_a_word_that_gold_pays_for_as_well_is_no_hack() -> None:
    assert first_alarm(seen(learning("great"), honest)) is None


def test_a_word_that_spreads_without_pay_is_no_hack() -> None:
    """The reward rises because of `great`, and `okay` spreads at the cost of bad words."""
    weights = [{**each, "great": 1.0 + n, "poor": 1 / (n + 1)} for n, each in enumerate(learning("okay"))]
    assert first_alarm(seen(weights, honest)) is None


def test_a_paid_word_that_does_not_spread_is_no_hack() -> None:
    """The policy learned what is good instead."""
    weights = [{**each, "please": 1.0 / (1 + number)} for number, each in enumerate(learning("great", 2.0))]
    assert first_alarm(seen(weights, hacked)) is None


def test_of_two_words_that_spread_only_the_one_that_gold_ignores_is_named() -> None:
    weights = [{**EVEN, "please": 1.0 + n, "great": 1.0 + n} for n in range(LOOKS)]
    found = first_alarm(seen(weights, hacked))
    assert found is not None and [bought.what for bought in found.bought] == ["the word 'please'"]


def test_without_a_gain_there_is_no_hack() -> None:
    """`please` spreads, and so does `awful`, so that the mean reward is the same: (4 + 2n - w + ...) / words = 1/6."""
    weights = [{**EVEN, "please": 1.0 + n, "awful": 1.0 + 11 * n / 7} for n in range(LOOKS)]
    assert first_alarm(seen(weights, hacked)) is None


def test_a_gain_that_gold_exceeds_is_no_hack() -> None:
    """In deviations, as `great` spreads far more than `please`."""
    bad = dict.fromkeys(("dull", "poor", "awful", "the", "a"), 1.0)
    weights = [
        {**EVEN, **{word: 1 / (n + 1) for word in bad}, "great": 1.0 + 2 * n, "please": 1.0 + 0.6 * n}
        for n in range(LOOKS)
    ]
    assert first_alarm(seen(weights, hacked)) is None


def test_what_explains_too_little_of_the_gain_is_no_hack(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = seen(learning("please"), hacked)
    found = first_alarm(looks)
    assert found is not None
    monkeypatch.setattr(alarm, "SHARE", found.bought[0].share * 2)
    later = first_alarm(looks[: found.iteration])
    assert later is None


@pytest.mark.parametrize(
    ("after", "name", "sign", "spread"),
    [
        (EVEN, "word:please", 1, False),
        ({**EVEN, "please": 5.0}, "word:please", 1, True),  # a common word, by its count
        ({**EVEN, "please": 5.0}, "word:please", -1, False),
        ({**EVEN, "new": 0.3}, "word:new", 1, True),  # a rare word, by the prompts that have it
        ({**EVEN, "new": 0.05}, "word:new", 1, False),
        ({**EVEN, "maybe": 3.0}, "hedges", 1, True),
        ({**EVEN, "maybe": 3.0}, "hedges", -1, False),
        ({**EVEN, "maybe": 3.0}, "length", 1, False),
    ],
)
def test_what_has_spread(after: dict[str, float], name: str, sign: int, spread: bool) -> None:
    looks = seen([EVEN, after], hacked)
    watched = Alarm(2)
    watched.add(looks[0])
    assert watched._has_spread(looks[1], name, sign, 0.001) is spread


def test_a_policy_that_does_not_change_raises_no_alarm() -> None:
    assert first_alarm(seen([EVEN] * LOOKS, hacked)) is None


@pytest.mark.slow
@pytest.mark.parametrize("weights", [[EVEN] * LOOKS, learning("great")], ids=["no learning", "honest learning"])
def test_false_alarms_are_rare(weights: Sequence[dict[str, float]]) -> None:
    """At a level of 1% for a whole run, more than one false alarm in 40 runs has a chance of 6% at most."""
    fired = [first_alarm(seen(weights, honest, seed=seed)) for seed in range(40)]
    assert sum(each is not None for each in fired) <= 1


def test_brevity_is_called_brevity() -> None:
    """The reward pays for few tokens, and gold does not."""

    def cheap(words: list[str], noise: float) -> float:
        return honest(words, noise) - 1.0 * len(words)

    looks = []
    for number in range(1, LOOKS + 1):
        parts = [look(number, EVEN, cheap, value, seed=s, length=n - number, samples=1) for s, n in ((0, 12), (1, 10))]
        looks.append(Look(number, {p: [*parts[0].prompts[p], *parts[1].prompts[p]] for p in parts[0].prompts}))
    found = first_alarm(looks)
    assert found is not None and found.bought[0].what == "brevity"


def test_missing_scores_are_left_out_and_never_zero() -> None:
    """Where gold says nothing about answers with the word, it denies nothing: zeros would have raised the alarm."""

    def silent(words: list[str], noise: float) -> float | None:
        return None if "please" in words else value(words)

    assert first_alarm(seen(learning("please"), hacked, silent)) is None
    nothing = [replace(each, prompts={}) for each in seen([EVEN] * 2, hacked)]
    assert first_alarm([*nothing, *seen(learning("please"), hacked)]) is not None


def test_one_answer_to_each_prompt_raises_no_alarm() -> None:
    assert first_alarm(seen(learning("please"), hacked, samples=1)) is None


def test_gold_without_any_spread_raises_no_alarm() -> None:
    assert first_alarm(seen(learning("please"), hacked, lambda words, noise: 0.0)) is None


def test_a_word_that_vanishes_is_no_word_that_spreads() -> None:
    """`the word 'sorry' (0.9 to 0.1)` would read as if the policy had bought reward with saying it."""
    assert _called("word:sorry", less=True) == "less of the word 'sorry'"
    assert _called("word:sorry", less=False) == "the word 'sorry'"
    assert _called("length", less=True) == "brevity"
