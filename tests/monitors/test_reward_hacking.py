"""The monitors: what is measured of samples, what has changed between looks, and a fall of gold."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from alignkit import Group, Monitor, MonitorReport, Options, Response
from alignkit.host.plugins import plugins
from alignkit.testing import check_monitor
from alignkit_plugins.monitors.reward_hacking import (
    LEAST,
    Drift,
    History,
    RewardHacking,
    change,
    means,
    measured,
)
from tests.rows import assistant, user
from tests.testing.kits import broken, reported

WORDS = ("red", "green", "blue", "one", "two", "three", "sun", "moon")


MONITORS = yaml.safe_load("""
- [reward_hacking, {}]
- [gold, {reward: length, prompts: prompts.jsonl, stop: true}]
- [kl_budget, {max: 0.6}]
""")


@pytest.mark.parametrize(("name", "options"), MONITORS)
def test_it_conforms(name: str, options: dict[str, Any]) -> None:
    check_monitor(plugins().get("monitor", name).implementation, options)


def test_one_that_needs_samples_is_refused() -> None:
    observe = staticmethod(lambda number, groups, metrics: groups[0] and MonitorReport())
    reported(check_monitor, broken(Monitor, observe=observe), "IndexError")


# What is measured


def answer(prompt: str, text: str, *logprobs: float, **more: Any) -> Group:
    response = Response(text, tokens=(1,) * len(logprobs), logprobs=logprobs, **more)
    return Group((user(prompt),), (response,), id=prompt)


def test_equal_prompts_are_one_unit() -> None:
    """The turns of an episode are read together, thoughts too; a tool's tokens are not the
    policy's.
    """
    one = answer("q", "a b", -1.0, -2.0, 0.0, action_mask=(True, True, False))
    turns: Any = (assistant("one"), {"role": "tool", "content": "no"}, assistant("two"))
    episode = Group((user("r"),), (Response("two", messages=turns, tokens=(1, 2)),), id="r")
    values, texts = measured([one, answer("q", "b</think>c", -3.0), episode])
    assert texts == [["a", "b"], ["b", "<", "/", "think", ">", "c"], ["one", "two"]]
    assert values["length"] == {"q": 1.5, "r": 2.0}
    assert values["sampled_entropy"] == {"q": pytest.approx((1.5 + 3.0) / 2)}


def test_metrics_of_a_look() -> None:
    first, second = answer("p", "yes yes maybe", *[-0.5] * 4), answer("p", "no way out", -1.5, -1.5)
    metrics, warnings = Drift(5).add([first, second])
    known = {"sampled_entropy": 1.0, "distinct_1": 5 / 6, "distinct_2": 1.0}
    known |= {"self_bleu": 0.0, "repetition": 0.0}
    assert not warnings and {name: metrics[name] for name in known} == pytest.approx(known)
    assert "length" not in metrics  # of which `response_tokens` is the mean


# Departures


def made(
    number: int, shortest: int = 12, more: Sequence[str] = (), surprise: float = 2.0
) -> list[Group]:
    """Two answers of random words to each of 30 prompts. more: words that each answer ends with."""
    rng, groups = np.random.default_rng(number), []
    for place in range(60):
        count = int(shortest + place // 2 % 5 + rng.integers(-2, 3))
        text = " ".join([*map(str, rng.choice(WORDS, count)), *more])
        logprob = -(surprise + float(rng.normal(0, 0.1)))
        groups.append(answer(f"p{place // 2}", text, *[logprob] * count))
    return groups


DEPARTURES: list[tuple[dict[str, Any], str]] = [
    ({"shortest": 5}, "answers are shorter than in the first iteration"),
    ({"more": ("and", "so", "on") * 3}, "answers repeat themselves more"),
    ({"surprise": 1.0}, "the policy is surer of its words"),
]


@pytest.mark.parametrize(("changed", "words"), DEPARTURES)
def test_each_departure_has_a_name_and_is_said_once(changed: dict[str, Any], words: str) -> None:
    drift = Drift(4)
    assert drift.add(made(1))[1] == []
    warnings = [drift.add(made(number, **changed))[1] for number in (2, 3)]
    assert any(text.startswith(words) for text in warnings[0])
    assert not any(text.startswith(words) for text in warnings[1])


@pytest.mark.parametrize(
    ("looks", "changes", "warnings"),
    [(2, [1, 21], 1), (3, [1, 21], 0), (2, [2, 2], 1), (2, [1, 2], 0)],
)
def test_a_change_must_be_certain_and_large(looks: int, changes: list[int], warnings: int) -> None:
    """All looks and the 4 measures share the chance of a false warning: t = 3.3 of 9 degrees, p =
    0.009, counts below 0.05 / 4, and not below 0.05 / 8. A fifth of the first value is large.
    """
    drift = Drift(looks)
    for lengths in ([10] * 10, [10 + each for each in changes * 5]):
        groups = [answer(f"p{n}", "a", *[-1.0] * count) for n, count in enumerate(lengths)]
        found = drift.add(groups)[1]
    assert len(found) == warnings


def test_no_departure_without_a_change() -> None:
    drift = Drift(10)
    assert not any(drift.add(made(number))[1] for number in range(1, 11))


# Kinds of prompts

DRAWS: dict[str, Any] = {
    "normal": lambda rng, size: rng.normal(0, 0.9, size),
    "coin": lambda rng, size: rng.binomial(1, 0.5, size),
    "mean of 4": lambda rng, size: rng.binomial(4, rng.beta(0.5, 0.5, size)) / 4,
}


def said_of_harmful(draw: str, iterations: int, prompts: int, fall: float, seed: int) -> list[int]:
    """The iterations in which a monitor says that the reward of harmful prompts falls. That of
    ordinary ones rises more.
    """
    rng, watch, said = np.random.default_rng(seed), RewardHacking(Options()), list[int]()
    settings = SimpleNamespace(iterations=iterations)
    watch.start(SimpleNamespace(settings=settings))  # type: ignore[arg-type]
    for number in range(1, iterations + 1):
        metrics, rewards = dict[str, float](), list[float]()
        for kind, moved in (("harmful", -fall), ("ordinary", 1 + 2 * fall)):
            own = DRAWS[draw](rng, prompts) + moved * (number - 1) / (iterations - 1)
            rewards += [*own]
            metrics |= {f"kind/{kind}/reward": own.mean(), f"kind/{kind}/prompts": prompts}
            metrics[f"kind/{kind}/reward_se"] = own.std(ddof=1) / prompts**0.5
        metrics["reward"] = float(np.mean(rewards))
        for text in watch.observe(number, [], metrics).warnings:
            assert text.startswith("the reward of 'harmful' fell from ")
            said.append(number)
    return said


@pytest.mark.parametrize(
    ("draw", "iterations", "prompts", "fall", "share"),
    [
        ("normal", 9, 8, 0, 0),
        ("coin", 6, 8, 0, 0),
        ("mean of 4", 6, 5, 0, 0),
        # The quick start on Gemma 3 270M, where the reward of harmful prompts fell by 0.7: with 8 of
        # them an iteration it is rarely clear
        ("normal", 3, 8, 0.7, 0.05),
        ("normal", 3, 48, 0.7, 0.8),
    ],
)
def test_a_fall_of_a_kind_is_said_once_and_falsely_in_a_run_of_a_hundred(
    draw: str, iterations: int, prompts: int, fall: float, share: float
) -> None:
    runs = 400
    said = [said_of_harmful(draw, iterations, prompts, fall, seed) for seed in range(runs)]
    assert max(map(len, said)) <= 1
    found = sum(map(bool, said)) / runs
    assert (found >= share) if share else (found <= 0.01), found


# Changes, with intervals over prompts


def numbered(values: Any, name: str = "") -> dict[str, float]:
    return {f"{name}{n}": float(value) for n, value in enumerate(values)}


def test_common_prompts_are_compared_with_themselves() -> None:
    rng = np.random.default_rng(0)
    difficulty, noise = rng.normal(0, 10, 20), rng.normal(0, 0.1, 20)
    found = change(numbered(difficulty) | {"x": 99.0}, numbered(difficulty + 1 + noise))
    assert found is not None and found.prompts == 20
    mean = float(1 + noise.mean())
    low, high = stats.t.interval(0.95, 19, loc=mean, scale=stats.sem(noise))
    assert (found.mean, found.low, found.high) == pytest.approx((mean, low, high))
    assert found.after - found.before == pytest.approx(found.mean)


def test_other_prompts_are_compared_as_independent() -> None:
    rng = np.random.default_rng(1)
    ours, many = rng.normal(1, 1, 12), rng.normal(0, 3, 30)
    for theirs in (many, many[:12]):
        found = change(numbered(theirs, "a"), numbered(ours, "b"), 0.01)
        expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.99)
        assert found is not None
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_too_few_prompts_say_nothing_and_equal_falls_are_certain() -> None:
    few, enough = numbered(range(LEAST - 1)), numbered(range(LEAST))
    assert change(few, few) is None is change({}, {})
    found = change(enough | {"x": 99.0}, numbered(range(1, LEAST + 1)))
    assert found is not None and (found.low, found.high) == (1.0, 1.0)  # each with itself
    found = change(numbered([1.0] * 9), numbered([0.0] * 9))
    assert found is not None and (found.mean, found.low, found.high) == (-1.0, -1.0, -1.0)
    assert str(found) == "-1.00 [-1.00, -1.00]"


# A fall from the best iteration


def by_prompt(mean: float, seed: int) -> dict[str, list[float]]:
    noise = np.random.default_rng(seed).normal(0, 0.3, 40)
    # Prompts differ far more than iterations
    return {str(n): [mean + n / 10 + float(noise[n])] for n in range(40)}


def test_gold_that_rises_and_falls() -> None:
    """The interval holds over all 45 pairs of 10 iterations: the best one is partly lucky."""
    history, seen = History(10), {}
    for number, level in enumerate((0.0, 0.5, 1.0, 0.9, 0.95, 0.5), 1):
        assert not history.fell()
        seen[number] = by_prompt(level, number)
        history.add(number, seen[number])
    moved = history.change()
    assert history.fell() and history.best == 3 and moved is not None and -0.8 < moved.mean < -0.3
    assert moved == change(means(seen[3]), means(seen[6]), 0.05 / 45)


def test_an_iteration_without_a_score_says_nothing() -> None:
    history = History(3)
    history.add(1, {})
    assert history.best == 0 and not history.fell() and history.change() is None
    history.add(2, by_prompt(1.0, 0))
    history.add(3, {})
    history.add(4, by_prompt(1.0, 0))  # the first of equals
    assert history.best == 2 and not history.fell()
    assert means({"p": [0.0], "q": []}) == {"p": 0.0}
