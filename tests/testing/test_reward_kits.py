"""The kits of rewards, combinations and judges: good ones pass, and each broken rule is reported
under the name of its class.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkit import (
    CombinedReward,
    DataError,
    Field,
    Group,
    Judge,
    Options,
    Rating,
    Reward,
    RewardCombination,
    RewardRef,
    RunFailed,
    Verdict,
)
from alignkit.judges import Item, Rated, Rubric
from alignkit.testing import (
    ConformanceError,
    check_combination,
    check_judge,
    check_reward,
    example_groups,
)


def reported(check: Callable[..., None], cls: Any, message: str, **more: Any) -> None:
    with pytest.raises(ConformanceError, match=message) as caught:
        check(cls, **more)
    assert all(line.startswith(f"{cls.__name__}: ") for line in str(caught.value).splitlines())


# Rewards


def texts(groups: Sequence[Group]) -> list[str]:
    return [response.text for group in groups for response in group.responses]


class Lengths(Reward):
    """A good one. `of`: the scores of the texts of all responses."""

    class Options(Options):
        scale: float = Field(1.0, description="a factor")

    @cached_property
    def factor(self) -> float:  # what is computed once is no state
        return self.options.scale / 2

    def of(self, texts: list[str]) -> Any:
        return [self.factor * len(text) for text in texts]

    def score(self, groups: Sequence[Group]) -> Any:
        return {"": self.of(texts(groups))}


class Ranks(Lengths):
    """A good one, which compares a response with the others of its group."""

    @property
    def within_group(self) -> bool:
        return True

    def score(self, groups: Sequence[Group]) -> Any:
        found = []
        for group in groups:
            lengths = [len(response.text) for response in group.responses]
            found += [length - max(lengths) for length in lengths]
        return {"": found}


class RanksInSecret(Ranks):
    @property
    def within_group(self) -> bool:
        return False


class Counts(Lengths):
    seen = 0

    def of(self, texts: list[str]) -> Any:
        self.seen += 1
        return [float(self.seen)] * len(texts)


class ByPlace(Lengths):
    def score(self, groups: Sequence[Group]) -> Any:
        return {"": [float(place) for group in groups for place, _ in enumerate(group.responses)]}


class NoComponent(Lengths):
    def score(self, groups: Sequence[Group]) -> Any:
        return self.of(texts(groups))


class NoScore(Reward):
    """Its author's line is that of the class."""


class NeedsAnswer(Lengths):
    def check_prompts(self, groups: Sequence[Group]) -> None:
        if any("answer" not in group.meta for group in groups):
            raise DataError("no column 'answer'")


class NeedsKey(Lengths):
    def check(self, folder: Path) -> None:
        raise RunFailed("the variable KEY is not set")


def test_good_rewards_conform() -> None:
    check_reward(Lengths)
    check_reward(Ranks)
    answered = [replace(group, meta={"answer": "7"}) for group in example_groups()]
    check_reward(NeedsAnswer, groups=answered)


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (lambda texts: [1.0] * (len(texts) - 1), "return a list of 12"),
        (lambda texts: [float("nan") for _ in texts], "return a finite number"),
        (lambda texts: [None for _ in texts], "scores none of the responses"),
        (lambda texts: [len(text) / len(texts) for text in texts], "a batch of one group changes"),
        (lambda texts: [random.random() for _ in texts], "another process changes the score"),
        (lambda texts: [len(text.split()[0]) for text in texts], r"IndexError.*_kits.py:\d+\)"),
    ],
)
def test_broken_scores_are_reported(of: Callable[[list[str]], Any], message: str) -> None:
    broken = type("Broken", (Lengths,), {"of": lambda self, texts: of(texts)})
    reported(check_reward, broken, message)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (NoScore, "NotImplementedError"),
        (RanksInSecret, "`within_group` must return True"),
        (Counts, "a second call changes the score of response 0 from 1.0"),
        (ByPlace, "the order of groups and responses changes the score"),
        (NoComponent, "return one component"),
        (NeedsAnswer, "no column 'answer'"),
        (NeedsKey, "the variable KEY is not set"),
        (dict, "must be a subclass of alignkit.Reward"),
    ],
)
def test_broken_rewards_are_reported(cls: Any, message: str) -> None:
    reported(check_reward, cls, message)


# Combinations


class Single(RewardCombination):
    """A good one: the reward itself. `of`: the rewards, of the scores."""

    class Options(Options):
        reward: RewardRef = Field("helpful", description="the reward")

    def parts(self) -> Mapping[str, Any]:
        return {"it": self.options.reward}

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Any:
        reward = self.of(components["it"])
        return CombinedReward(reward=reward, raw=reward, metrics={})

    def of(self, scores: Tensor) -> Any:
        return scores


class Multiplier(Single):
    """A good one, which remembers in `state`."""

    def of(self, scores: Tensor) -> Any:
        weight = self.state.get("weight", 1.0)
        self.state["weight"] = weight + float(scores.nanmean())
        return weight * scores


class Sum(Single):
    """A good one with a total."""

    def total(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Tensor:
        return components["it"]


class OtherTotal(Sum):
    def total(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Tensor:
        return 2 * components["it"]


class BareTensor(Single):
    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Any:
        return components["it"]


class Remembers(Single):
    mean = 0.0

    def of(self, scores: Tensor) -> Any:
        self.mean = 0.9 * self.mean + float(scores.mean())
        return scores - self.mean


class SpreadsNan(Single):
    whitens = True

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Any:
        x = components["it"]
        return CombinedReward(reward=(x - x.mean()) / (x.std() + 1), raw=x, metrics={})


class StartsWithSet(Single):
    def __init__(self, options: Any):
        super().__init__(options)
        self.state = {"seen": set()}


class PartCalledReward(Single):
    def parts(self) -> Mapping[str, Any]:
        return {"reward": self.options.reward}


@pytest.mark.parametrize("cls", [Single, Multiplier, Sum])
def test_good_combinations_conform(cls: type[RewardCombination]) -> None:
    check_combination(cls)


def kept(value: Callable[[Tensor], Any]) -> Callable[[Any, Tensor], Tensor]:
    """`of` that keeps something of the scores in `state`."""

    def of(self: Any, scores: Tensor) -> Tensor:
        self.state["kept"] = value(scores)
        return scores

    return of


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (lambda self, scores: scores[:4], r"as .responses. = .12., not .4."),
        (kept(lambda scores: scores.mean()), "`state` after `combine` is not JSON"),
        (kept(lambda scores: {1: True}), "`state` after `combine` changes when saved"),
        (kept(lambda scores: float(torch.rand(()))), "leaves another `state`"),
        (lambda self, scores: scores.clamp_(-1, 1), "changes the groups or components"),
        (lambda self, scores: scores + torch.rand(len(scores)), "a second call from the same"),
        (lambda self, scores: scores.cumsum(0).nan_to_num(), "the order of groups and responses"),
        (lambda self, scores: scores.log(), "a reward is not finite"),
    ],
)
def test_broken_sums_are_reported(of: Any, message: str) -> None:
    reported(check_combination, type("Broken", (Single,), {"of": of}), message)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (BareTensor, r"return a CombinedReward, not \[12\]"),
        (Remembers, "what it remembers outside of `state`"),
        (SpreadsNan, "where there is none, `raw` is NaN"),
        (OtherTotal, "`total` changes the rewards"),
        (StartsWithSet, "`state` at first is not JSON"),
        (PartCalledReward, "cannot be named 'reward'"),
    ],
)
def test_broken_combinations_are_reported(cls: Any, message: str) -> None:
    reported(check_combination, cls, message)


# Judges


def prefers(first: float, second: float) -> Verdict:
    """The greater number is better, and equal ones tie."""
    return Verdict(0.5 if first == second else float(first > second))


class Longer(Judge):
    """A good one: the longer response is better."""

    def compare(self, items: Sequence[Item]) -> Any:
        return [prefers(len(first), len(second)) for _, first, second in items]


class Rates(Longer):
    """A good one that rates, too: by the number of letters, or of criteria that occur."""

    def rate(self, items: Sequence[Rated], rubric: Rubric = "") -> Any:
        return [self.one(text, rubric) for _, text in items]

    def one(self, text: str, rubric: Rubric) -> Any:
        return Rating(float(sum(each[3:6] in text for each in rubric) if rubric else len(text)))


class ByRubric(Longer):
    """A good one, which counts the criteria that occur if it is given some."""

    compares_by_rubric = True

    def compare(self, items: Sequence[Item], rubric: Rubric = "") -> Any:
        if not rubric:
            return super().compare(items)
        return [prefers(*(self.met(text, rubric) for text in texts)) for _, *texts in items]

    def met(self, text: str, rubric: Rubric) -> float:
        return sum(criterion[3:6] in text for criterion in rubric)


class Tired(Longer):
    asked = 0

    def compare(self, items: Sequence[Item]) -> Any:
        self.asked += 1
        return super().compare(items) if self.asked == 1 else [Verdict(0.5) for _ in items]


class NoKey(Longer):
    def check(self, folder: Path) -> None:
        raise RunFailed("the variable KEY is not set")


class Shuffles(Longer):
    def compare(self, items: Any) -> Any:
        items.reverse()
        return super().compare(items)[::-1]


def no_rubric(self: Any, text: str, rubric: Rubric) -> Any:
    return 1 / 0 if rubric else Rating(1.0)


@pytest.mark.parametrize(
    "cls",
    [
        Longer,
        Rates,
        ByRubric,
        # A judge with its own measure is given no rubric.
        type("Own", (Rates,), {"one": no_rubric, "reads_rubric": False}),
    ],
)
def test_good_judges_conform(cls: type[Judge]) -> None:
    check_judge(cls)


def relative(items: Sequence[Item]) -> list[Verdict]:
    """The longer response is better if it is above the batch's mean."""
    mean = sum(len(first) + len(second) for _, first, second in items) / len(items)
    return [prefers(len(first) > mean, len(second) > mean) for _, first, second in items]


def silent_if_empty(items: Sequence[Item]) -> list[Verdict]:
    return [prefers(len(a), len(b)) if b else Verdict(None) for _, a, b in items]


COMPARE: list[tuple[Any, str]] = [
    (
        lambda items: [Verdict(float(len(a) >= len(b))) for _, a, b in items],
        "second first changes P.* of item 4 from 1.0 to 0.0",
    ),
    (lambda items: [0.5 for _ in items], "return a Verdict, not "),
    (lambda items: [Verdict(0.5)], "return a list of 5, each a Verdict"),
    (lambda items: [Verdict(60.0) for _ in items], "less than or equal to 1"),
    (relative, "a batch of one item changes P"),
    (lambda items: [Verdict(random.random()) for _ in items], "must not draw random numbers"),
    (lambda items: [Verdict(None, reason="7") for _ in items], r"answers none of 5 items \(7\)"),
    (silent_if_empty, "without `p_first` needs a `reason`"),
    (lambda items: [prefers(len(a.split()[0]), len(b.split()[0])) for _, a, b in items], "_kits.py:"),
]  # fmt: skip


@pytest.mark.parametrize(("compare", "message"), COMPARE)
def test_broken_verdicts_are_reported(compare: Any, message: str) -> None:
    broken = type("Broken", (Judge,), {"compare": lambda self, items: compare(items)})
    reported(check_judge, broken, message)


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (lambda self, text, rubric: 0.5, "return a Rating"),
        (lambda self, text, rubric: Rating(float("nan")), "finite number"),
        (lambda self, text, rubric: Rating(random.random()), "second call changes the rating"),
        (lambda self, text, rubric: Rating(None, "7"), r"`rate` answers none of 5 items \(7\)"),
        (lambda self, text, rubric: Rating(None if "P" in text else 1.0), "needs a `reason`"),
        (no_rubric, "[.]rate`: ZeroDivisionError"),
    ],
)
def test_broken_ratings_are_reported(one: Any, message: str) -> None:
    reported(check_judge, type("Broken", (Rates,), {"one": one}), message)


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (lambda items: [Rating(1.0)], "return a list of 5, each a Rating"),
        (
            lambda items: [Rating(len(text) / len(items)) for _, text in items],
            "a batch of one item changes the rating of item 0",
        ),
    ],
)
def test_ratings_of_other_items_are_reported(rate: Any, message: str) -> None:
    broken = type("Broken", (Rates,), {"rate": lambda self, items, rubric="": rate(items)})
    reported(check_judge, broken, message)


def first_by_rubric(self: Any, items: Sequence[Item], rubric: Rubric = "") -> Any:
    return [Verdict(1.0) for _ in items] if rubric else Longer.compare(self, items)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Tired, "a second call changes P"),
        (NoKey, "the variable KEY is not set"),
        (type("B", (ByRubric,), {"compare": first_by_rubric}), "P.* of item 0 from 1.0 to 0.0"),
        (type("B", (ByRubric,), {"met": no_rubric}), "[.]compare`: ZeroDivisionError"),
        (str, "must be a subclass of alignkit.Judge"),
    ],
)
def test_broken_judges_are_reported(cls: Any, message: str) -> None:
    reported(check_judge, cls, message)


def test_items_must_stay_as_they_are() -> None:
    items = [((), "a", "bc"), ((), "abc", "d")]
    reported(check_judge, Shuffles, "changes the items that it is given", items=items)
    check_judge(Longer, items=items)
