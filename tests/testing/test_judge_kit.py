"""The kit of judges: first-party judges pass, and each kind of broken one is reported."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from alignkit import Judge, Rating, RunFailed, Verdict
from alignkit.judges import Item, Rated, Rubric
from alignkit.plugins import plugins
from alignkit.testing import ConformanceError, check_judge

OPTIONS = {
    "local_judge": {"min_mass": 0, "criterion": "harmless", "role": "judge"},
    "reward_judge": {"reward_model": "helpful"},
    "panel": {
        "judges": [
            {"local_judge": {"min_mass": 0}},
            {"local_judge": {"min_mass": 0, "criterion": "harmless"}},
        ]
    },
}
EXCEPTIONS = {"openai_judge": "asks a server; tests/ai_feedback/test_rlaif.py starts one"}


def first_party() -> dict[str, type]:
    registrations = plugins().registrations("judge")
    return {one.name: one.implementation for one in registrations if one.distribution == "alignkit"}


def test_every_first_party_judge_is_checked_or_excepted() -> None:
    assert first_party().keys() == OPTIONS.keys() | EXCEPTIONS.keys()


@pytest.mark.parametrize("name", OPTIONS)
def test_first_party_judges_conform(name: str) -> None:
    check_judge(first_party()[name], OPTIONS[name])


def prefers(first: float, second: float) -> Verdict:
    """The greater number is better, and equal ones tie."""
    return Verdict(0.5 if first == second else float(first > second))


class Longer(Judge):
    """A good one."""

    def compare(self, items: Sequence[Item]) -> Any:
        return [prefers(len(first), len(second)) for _, first, second in items]


def test_a_good_judge_conforms() -> None:
    check_judge(Longer)


class Rates(Longer):
    """A good one that rates, too: by the number of letters, or of criteria that occur."""

    def rate(self, items: Sequence[Rated], rubric: Rubric = "") -> Any:
        return [self.one(text, rubric) for _, text in items]

    def one(self, text: str, rubric: Rubric) -> Any:
        return Rating(float(sum(each[3:6] in text for each in rubric) if rubric else len(text)))


def test_a_good_judge_with_ratings_conforms() -> None:
    check_judge(Rates)


class RatesNumbers(Rates):
    def one(self, text: str, rubric: Rubric) -> Any:
        return 0.5


class RatesTooFew(Rates):
    def rate(self, items: Sequence[Rated], rubric: Rubric = "") -> Any:
        return [Rating(1.0)]


class RatesNan(Rates):
    def one(self, text: str, rubric: Rubric) -> Any:
        return Rating(float("nan"))


class RatesRelative(Rates):
    def rate(self, items: Sequence[Rated], rubric: Rubric = "") -> Any:
        return [Rating(len(text) / len(items)) for _, text in items]


class RatesByChance(Rates):
    def one(self, text: str, rubric: Rubric) -> Any:
        return Rating(random.random())


class RatesNothing(Rates):
    def one(self, text: str, rubric: Rubric) -> Any:
        return Rating(None, "too long: 7 tokens")


class RatesWithoutReason(Rates):
    def one(self, text: str, rubric: Rubric) -> Any:
        return Rating(None) if "Paris" in text else Rating(1.0)


class RatesNoRubric(Rates):
    def one(self, text: str, rubric: Rubric) -> Any:
        if rubric:
            raise KeyError("rubric")
        return Rating(1.0)


def test_a_judge_with_its_own_measure_is_given_no_rubric() -> None:
    class Own(RatesNoRubric):
        reads_rubric = False

    check_judge(Own)


class ByRubric(Longer):
    """A good one, which counts the criteria that occur if it is given some."""

    compares_by_rubric = True

    def compare(self, items: Sequence[Item], rubric: Rubric = "") -> Any:
        if not rubric:
            return super().compare(items)
        return [prefers(*(self.met(text, rubric) for text in texts)) for _, *texts in items]

    def met(self, text: str, rubric: Rubric) -> float:
        return sum(criterion[3:6] in text for criterion in rubric)


def test_a_good_judge_that_compares_by_a_rubric_conforms() -> None:
    check_judge(ByRubric)


class ByRubricInOneOrder(ByRubric):
    def compare(self, items: Sequence[Item], rubric: Rubric = "") -> Any:
        return [Verdict(1.0) for _ in items] if rubric else super().compare(items)


class ByNoRubric(ByRubric):
    def met(self, text: str, rubric: Rubric) -> float:
        raise KeyError("rubric")


class FirstIfEqual(Judge):
    def compare(self, items: Sequence[Item]) -> Any:
        return [Verdict(float(len(first) >= len(second))) for _, first, second in items]


class Numbers(Judge):
    def compare(self, items: Sequence[Item]) -> Any:
        return [0.5 for _ in items]


class OneVerdict(Judge):
    def compare(self, items: Sequence[Item]) -> Any:
        return [Verdict(0.5)]


class Percent(Judge):
    def compare(self, items: Sequence[Item]) -> Any:
        return [Verdict(60.0) for _ in items]


class Relative(Judge):
    """The longer answer is better if it is above the batch's mean."""

    def compare(self, items: Sequence[Item]) -> Any:
        mean = sum(len(first) + len(second) for _, first, second in items) / len(items)
        return [prefers(len(first) > mean, len(second) > mean) for _, first, second in items]


class Tired(Longer):
    asked = 0

    def compare(self, items: Sequence[Item]) -> Any:
        self.asked += 1
        return super().compare(items) if self.asked == 1 else [Verdict(0.5) for _ in items]


class Coin(Judge):
    def compare(self, items: Sequence[Item]) -> Any:
        return [Verdict(random.random()) for _ in items]


class Silent(Judge):
    def compare(self, items: Sequence[Item]) -> Any:
        return [Verdict(None, reason="too long: 7 tokens") for _ in items]


class NoReason(Judge):
    def compare(self, items: Sequence[Item]) -> Any:
        return [
            prefers(len(first), len(second)) if second else Verdict(None)
            for _, first, second in items
        ]


class Crashes(Judge):
    def compare(self, items: Sequence[Item]) -> Any:
        return [
            prefers(len(first.split()[0]), len(second.split()[0])) for _, first, second in items
        ]


class NoKey(Longer):
    def check(self, folder: Path) -> None:
        raise RunFailed("the variable KEY is not set")


class Shuffles(Longer):
    def compare(self, items: Any) -> Any:
        items.reverse()
        return super().compare(items)[::-1]


BROKEN: list[tuple[Any, str]] = [
    (
        FirstIfEqual,
        "`compare`: showing the second first changes P.* of item 4 from 1.0 to 0.0: ask in b",
    ),
    (Numbers, "[.]compare`: return a Verdict, not "),
    (OneVerdict, "[.]compare`: return a list of 5, each a Verdict, not "),
    (Percent, "[.]compare`: ValidationError: .* less than or equal to 1"),
    (
        Relative,
        "`compare`: a batch of one item changes P.*: an answer depends only on its own prompt",
    ),
    (Tired, "`compare`: a second call changes P"),
    (Coin, "`compare`: a second call changes P.* must not draw random numbers"),
    (Silent, r"`compare` answers none of 5 items \(too long: 7 tokens\): pass others as `items`"),
    (NoReason, "`compare`: an answer without `p_first` needs a `reason`"),
    (Crashes, r"[.]compare`: IndexError: list index out of range \(test_judge_kit.py:\d+\)"),
    (RatesNumbers, "[.]rate`: return a Rating .*, not "),
    (RatesTooFew, "[.]rate`: return a list of 5, each a Rating .*, not "),
    (RatesNan, "[.]rate`: ValidationError: .* finite number"),
    (RatesRelative, "`rate`: a batch of one item changes the rating of item 0"),
    (RatesByChance, "`rate`: a second call changes the rating of item 0"),
    (
        RatesNothing,
        r"`rate` answers none of 5 items \(too long: 7 tokens\): pass others as `items`",
    ),
    (RatesWithoutReason, "`rate`: an answer without `score` needs a `reason`"),
    (RatesNoRubric, "[.]rate`: KeyError: 'rubric'"),
    (
        ByRubricInOneOrder,
        "`compare`: showing the second first changes P.* of item 0 from 1.0 to 0.0",
    ),
    (ByNoRubric, "[.]compare`: KeyError: 'rubric'"),
    (NoKey, "NoKey: the variable KEY is not set"),
    (str, "str: judge 'str' must be a subclass of alignkit.Judge"),
]


@pytest.mark.parametrize(("cls", "message"), BROKEN, ids=[cls.__name__ for cls, _ in BROKEN])
def test_broken_judges_are_reported(cls: Any, message: str) -> None:
    with pytest.raises(ConformanceError, match=message) as caught:
        check_judge(cls)
    assert all(line.startswith(f"{cls.__name__}: ") for line in str(caught.value).splitlines())


def test_items_must_stay_as_they_are() -> None:
    items = [((), "a", "bc"), ((), "abc", "d")]
    with pytest.raises(ConformanceError, match="`compare` changes the items that it is given"):
        check_judge(Shuffles, items=items)
    check_judge(Longer, items=items)
