"""The kit of combinations: every first-party one passes, and each kind of broken one is
reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkit import CombinedReward, Field, Group, Options, RewardCombination, RewardRef
from alignkit.plugins import plugins
from alignkit.testing import ConformanceError, check_combination

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "equal_length": [{"reward": "helpful"}, {"reward": {"length": {}}, "unit_variance": True}],
    "llama2": [
        {"helpful": "helpful", "safety": "harmless"},
        {"helpful": "helpful", "safety": "harmless", "whiten": False},
    ],
    "weighted_sum": [
        {
            "rewards": {"a": "helpful", "b": {"length": {}}},
            "weights": {"a": 1, "b": -0.5},
        }
    ],
}
CASES = [(name, options) for name, each in OPTIONS.items() for options in each]


def first_party() -> dict[str, type]:
    registrations = plugins().registrations("reward")
    found = {
        one.name: one.implementation for one in registrations if one.distribution == "alignkit"
    }
    return {name: cls for name, cls in found.items() if issubclass(cls, RewardCombination)}


def test_every_first_party_combination_is_checked() -> None:
    assert first_party().keys() == OPTIONS.keys()


@pytest.mark.parametrize(("name", "options"), CASES, ids=[name for name, _ in CASES])
def test_first_party_combinations_conform(name: str, options: dict[str, Any]) -> None:
    check_combination(first_party()[name], options)


class Single(RewardCombination):
    """A good one: the reward itself."""

    class Options(Options):
        reward: RewardRef = Field("helpful", description="the reward")

    def parts(self) -> Mapping[str, Any]:
        return {"it": self.options.reward}

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Any:
        return self.of(components["it"])

    def of(self, x: Tensor, **metrics: Any) -> CombinedReward:
        return CombinedReward(reward=x, raw=x, metrics=metrics)


class Multiplier(Single):
    """Remembers a multiplier as it should."""

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Any:
        weight = self.state.get("weight", 1.0)
        self.state["weight"] = weight + float(components["it"].nanmean())
        return self.of(weight * components["it"], weight=weight)


class Sum(Single):
    def total(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Tensor:
        return components["it"]


@pytest.mark.parametrize("cls", [Single, Multiplier, Sum])
def test_good_combinations_conform(cls: type[RewardCombination]) -> None:
    check_combination(cls)


class PerGroup(Single):
    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Any:
        return self.of(components["it"][: len(groups)])


class BareTensor(Single):
    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Any:
        return components["it"]


class Remembers(Single):
    mean = 0.0

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Any:
        self.mean = 0.9 * self.mean + float(components["it"].mean())
        return self.of(components["it"] - self.mean)


class TensorState(Single):
    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Any:
        self.state["mean"] = components["it"].mean()
        return self.of(components["it"])


class KeyedByNumber(Single):
    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Any:
        self.state["seen"] = {1: True}
        return self.of(components["it"])


class InPlace(Single):
    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Any:
        return self.of(components["it"].clamp_(-1, 1))


class Noise(Single):
    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Any:
        return self.of(components["it"] + torch.rand(len(components["it"])))


class NoisyState(Single):
    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Any:
        self.state["noise"] = float(torch.rand(()))
        return self.of(components["it"])


class ByPlace(Single):
    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Any:
        return self.of(components["it"].cumsum(0).nan_to_num())


class SpreadsNan(Single):
    whitens = True  # type: ignore[assignment]

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Any:
        x = components["it"]
        return CombinedReward(reward=(x - x.mean()) / (x.std() + 1), raw=x, metrics={})


class OtherTotal(Sum):
    def total(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Tensor:
        return 2 * components["it"]


class Logarithm(Single):
    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Any:
        return self.of(components["it"].log())


class StartsWithSet(Single):
    def __init__(self, options: Any):
        super().__init__(options)
        self.state = {"seen": set()}


class PartCalledReward(Single):
    def parts(self) -> Mapping[str, Any]:
        return {"reward": self.options.reward}


BROKEN: list[tuple[Any, str]] = [
    (PerGroup, r"[.]combine`: return `reward` and `raw` as .responses. = .12., not .4."),
    (BareTensor, r"[.]combine`: return a CombinedReward, not \[12\]"),
    (Remembers, "`combine`: what it remembers outside of `state` changes the rewards"),
    (TensorState, "`state` after `combine` is not JSON"),
    (KeyedByNumber, "`state` after `combine` changes when saved as JSON and loaded"),
    (InPlace, r"`combine` changes the groups or components that it is given"),
    (
        Noise,
        "`combine`: a second call from the same state changes the rewards, .*: it must not draw "
        "random numbers",
    ),
    (NoisyState, "`combine`: a second call from the same state leaves another `state`"),
    (ByPlace, "`combine`: the order of groups and responses changes the rewards"),
    (SpreadsNan, "return finite rewards; where there is none, `raw` is NaN"),
    (
        OtherTotal,
        "`total` changes the rewards, .*: it is the reward of the scores that it is given",
    ),
    (Logarithm, "`combine`: a reward is not finite although every response has all scores"),
    (StartsWithSet, "`state` at first is not JSON"),
    (PartCalledReward, "a part of 'PartCalledReward' cannot be named 'reward'"),
]


@pytest.mark.parametrize(("cls", "message"), BROKEN, ids=[cls.__name__ for cls, _ in BROKEN])
def test_broken_combinations_are_reported(cls: Any, message: str) -> None:
    with pytest.raises(ConformanceError, match=message) as caught:
        check_combination(cls)
    assert all(line.startswith(f"{cls.__name__}: ") for line in str(caught.value).splitlines())
