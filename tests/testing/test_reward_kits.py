"""The kits of rewards, combinations and judges: good ones pass, and each broken rule is reported
under the name of its class.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
from alignkit.contract.reward import Item, Rated, Rubric
from alignkit.testing import (
    check_combination,
    check_judge,
    check_reward,
    example_groups,
)
from tests.testing.kits import broken, reported

Methods = dict[str, Any]


def needs_key(self: Any, folder: Any) -> None:
    raise RunFailed("the variable KEY is not set")


def counted(self: Any) -> int:
    """How often it was asked."""
    self.asked = getattr(self, "asked", 0) + 1
    return int(self.asked)


def drawn(self: Any) -> float:
    """A number of its own."""
    return float(vars(self).setdefault("number", random.random()))


# Rewards


class Lengths(Reward):
    """A good one. `of`: the scores of the texts of all responses."""

    def of(self, texts: list[str]) -> Any:
        return list(map(len, texts))

    def score(self, groups: Sequence[Group]) -> Any:
        return self.of([response.text for group in groups for response in group.responses])


def ranks(self: Any, groups: Sequence[Group]) -> Any:
    """Compares a response with the others of its group."""
    found = []
    for group in groups:
        lengths = [len(response.text) for response in group.responses]
        found += [length - max(lengths) for length in lengths]
    return found


def by_place(self: Any, groups: Sequence[Group]) -> Any:
    return [float(place) for group in groups for place, _ in enumerate(group.responses)]


def needs_answer(self: Any, groups: Sequence[Group]) -> None:
    if any("answer" not in group.meta for group in groups):
        raise DataError("no column 'answer'")


def scores(of: Callable[[list[str]], Any]) -> Methods:
    return {"of": lambda self, texts: of(texts)}


def test_good_rewards_conform() -> None:
    check_reward(type("Ranks", (Lengths,), {"score": ranks, "within_group": True}))
    answered = [replace(group, meta={"answer": "7"}) for group in example_groups()]
    needs = type("NeedsAnswer", (Lengths,), {"check_prompts": needs_answer})
    check_reward(needs, groups=answered)
    some = scores(lambda texts: [None if "7" in text else 1.0 for text in texts])
    check_reward(type("Some", (Lengths,), some))


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (scores(lambda texts: [1.0] * (len(texts) - 1)), "return a list of 12"),
        (scores(lambda texts: [None for _ in texts]), "scores none of the responses"),
        (scores(lambda texts: [len(text) / len(texts) for text in texts]), "a batch of one group"),
        (scores(lambda texts: [random.random() for _ in texts]), "another process changes"),
        (
            {"of": lambda self, texts: [drawn(self)] * len(texts)},
            "another process changes the score",
        ),
        ({"score": ranks}, "`within_group` must return True"),
        (
            {"of": lambda self, texts: [counted(self)] * len(texts)},
            "a second call changes the score of response 0 from 1",
        ),
        ({"score": by_place}, "the order of groups and responses changes the score"),
        ({"score": lambda self, groups: {"": [1.0] * 12}}, "return the list itself"),
        ({"check_prompts": needs_answer}, "no column 'answer'"),
        ({"check": needs_key}, "the variable KEY is not set"),
    ],
)
def test_broken_rewards_are_reported(methods: Methods, message: str) -> None:
    reported(check_reward, broken(Lengths, **methods), message)
    reported(check_reward, dict, "must be a subclass of alignkit.Reward")


# Combinations


class Single(RewardCombination):
    """A good one: the reward itself. `of`: the rewards, of the scores."""

    class Options(Options):
        reward: RewardRef = Field("helpful", description="the reward")

    def parts(self) -> Mapping[str, Any]:
        return {"it": self.options.reward}

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Any:
        reward = self.of(components["it"])
        return CombinedReward(reward)

    def of(self, scores: Tensor) -> Any:
        return scores


def multiplies(self: Any, scores: Tensor) -> Tensor:
    """What it remembers is in `state`."""
    weight = self.state.get("weight", 1.0)
    self.state["weight"] = weight + float(scores.nanmean())
    return weight * scores


def remembers(self: Any, scores: Tensor) -> Tensor:
    return scores - counted(self)


def starts_with_set(self: Any, options: Any) -> None:
    RewardCombination.__init__(self, options)
    self.state = {"seen": set()}


def test_a_combination_may_remember_in_its_state() -> None:
    check_combination(type("Multiplier", (Single,), {"of": multiplies}))


def kept(value: Callable[[Tensor], Any]) -> Methods:
    """It keeps something of the scores in `state`."""

    def of(self: Any, scores: Tensor) -> Tensor:
        self.state["kept"] = value(scores)
        return scores

    return {"of": of}


def of(function: Callable[[Tensor], Any]) -> Methods:
    return {"of": lambda self, scores: function(scores)}


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (of(lambda scores: scores[:4]), r"as .responses. = .12., not .4."),
        (of(lambda scores: scores.clamp_(-1, 1)), "changes the groups or components"),
        (of(lambda scores: scores + torch.rand(len(scores))), "a second call from the same"),
        (of(lambda scores: scores.cumsum(0).nan_to_num()), "the order of groups and responses"),
        (of(lambda scores: scores.log()), "a reward is not finite"),
        (of(lambda scores: scores - scores.mean()), "a missing score makes the rewards of other"),
        (kept(lambda scores: scores.mean()), "`state` after `combine` is not JSON"),
        (kept(lambda scores: math.nan), "`state` after `combine` is not JSON"),
        (kept(lambda scores: {1: True}), "`state` after `combine` changes when saved"),
        (kept(lambda scores: random.random()), "leaves another `state`"),
        ({"of": remembers}, "what it remembers outside of `state`"),
        ({"__init__": starts_with_set}, "`state` at first is not JSON"),
        ({"parts": lambda self: {"reward": self.options.reward}}, "cannot be named 'reward'"),
        (
            {"combine": lambda self, groups, components: components["it"]},
            r"return a CombinedReward, not \[12\]",
        ),
    ],
)
def test_broken_combinations_are_reported(methods: Methods, message: str) -> None:
    reported(check_combination, broken(Single, **methods), message)


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
    """A good one, which prefers by the criteria that occur if it is given some."""

    compares_by_rubric = True

    def compare(self, items: Sequence[Item], rubric: Rubric = "") -> Any:
        if not rubric:
            return super().compare(items)
        return [self.met(first, second, rubric) for _, first, second in items]

    def met(self, first: str, second: str, rubric: Rubric) -> Any:
        return prefers(*(sum(each[3:6] in text for each in rubric) for text in (first, second)))


def tires(self: Any, items: Sequence[Item]) -> Any:
    return Longer.compare(self, items) if counted(self) == 1 else [Verdict(0.5) for _ in items]


def shuffles(self: Any, items: Any) -> Any:
    items.reverse()
    return Longer.compare(self, items)[::-1]


def no_rubric(self: Any, *asked: Any) -> Any:
    return 1 / 0 if asked[-1] else Rating(1.0)


def relative(items: Sequence[Item]) -> list[Verdict]:
    """The longer response is better if it is above the batch's mean."""
    mean = sum(len(first) + len(second) for _, first, second in items) / len(items)
    return [prefers(len(first) > mean, len(second) > mean) for _, first, second in items]


def silent_if_empty(items: Sequence[Item]) -> list[Verdict]:
    return [prefers(len(a), len(b)) if b else Verdict(None) for _, a, b in items]


def compares(compare: Callable[[Sequence[Item]], Any]) -> Methods:
    return {"compare": lambda self, items: compare(items)}


def each(one: Callable[[str], Any]) -> Methods:
    return {"one": lambda self, text, rubric: one(text)}


def all_of(rate: Callable[[Sequence[Rated]], Any]) -> Methods:
    return {"rate": lambda self, items, rubric="": rate(items)}


def test_good_judges_conform() -> None:
    check_judge(ByRubric)
    # A judge with its own measure is given no rubric
    check_judge(type("Own", (Rates,), {"one": no_rubric, "reads_rubric": False}))


@pytest.mark.parametrize(
    ("base", "methods", "message"),
    [
        (
            Longer,
            compares(lambda items: [Verdict(float(len(a) >= len(b))) for _, a, b in items]),
            "second first changes P.* of item 4 from 1.0 to 0.0",
        ),
        (Longer, compares(lambda items: [0.5 for _ in items]), "return a Verdict, not "),
        (Longer, compares(lambda items: [Verdict(0.5)]), "return a list of 5, each a Verdict"),
        (Longer, compares(relative), "a batch of one item changes P"),
        (
            Longer,
            compares(lambda items: [Verdict(random.random()) for _ in items]),
            "must not draw random numbers",
        ),
        (
            Longer,
            compares(lambda items: [Verdict(None, reason="7") for _ in items]),
            r"answers none of 5 items \(7\)",
        ),
        (Longer, compares(silent_if_empty), "without `p_first` needs a `reason`"),
        (Longer, {"compare": tires}, "a second call changes P"),
        (Longer, {"check": needs_key}, "the variable KEY is not set"),
        (ByRubric, {"met": lambda *asked: Verdict(1.0)}, "P.* of item 0 from 1.0 to 0.0"),
        (ByRubric, {"met": no_rubric}, r"[.]compare`: ZeroDivisionError.*_kits.py:\d+"),
        (Rates, each(lambda text: 0.5), "return a Rating"),
        (Rates, each(lambda text: Rating(random.random())), "second call changes the rating"),
        (Rates, each(lambda text: Rating(None, "7")), r"`rate` answers none of 5 items \(7\)"),
        (Rates, each(lambda text: Rating(None if "P" in text else 1.0)), "needs a `reason`"),
        (Rates, {"one": no_rubric}, "[.]rate`: ZeroDivisionError"),
        (Rates, all_of(lambda items: [Rating(1.0)]), "return a list of 5, each a Rating"),
        (
            Rates,
            all_of(lambda items: [Rating(len(text) / len(items)) for _, text in items]),
            "a batch of one item changes the rating of item 0",
        ),
    ],
)
def test_broken_judges_are_reported(base: type[Judge], methods: Methods, message: str) -> None:
    reported(check_judge, broken(base, **methods), message)


def test_items_must_stay_as_they_are() -> None:
    items = [((), "a", "bc"), ((), "abc", "d")]
    check_judge(Longer, items=items)
    said = "changes the items that it is given"
    reported(check_judge, broken(Longer, compare=shuffles), said, items=items)
