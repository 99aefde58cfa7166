"""The kit of rewards: every first-party reward that needs no server passes, and each kind of broken
one is reported.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit import (
    DataError,
    Field,
    Group,
    Options,
    Response,
    Reward,
    RewardCombination,
    RunFailed,
)
from alignkit.environment import EPISODE_KEY
from alignkit.plugins import plugins
from alignkit.testing import ConformanceError, check_reward, example_groups

JUDGE = {"local_judge": {"min_mass": 0}}
FUNCTION = (
    "def polite(prompts, completions, **columns):\n"
    "    return [float('e' in text) for text in completions]\n"
)
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "abstention": [{}],
    "classifier": [],  # reads a folder, as tests/rewards/test_classifier.py does
    "environment": [{}],
    "exact_match": [{"column": "right"}],
    "format": [{"tags": ["think", "answer"]}],
    "honesty": [{"column": "right"}],
    "honesty_accuracy": [{"column": "right", "match": "contains"}],
    "http": [],  # asks a server, as tests/ai_feedback/test_http_reward.py does
    "language": [{"language": "en"}],
    "math_verify": [{"column": "right"}],
    "length": [{}, {"unit": "words", "target": 3, "scale": 0.5}],
    "normalized": [{"reward_model": "helpful", "data": "demonstrations.jsonl", "gain": True}],
    "refusal": [{}, {"scale": -1.0}],
    "python": [{"path": "polite.py", "function": "polite"}],
    "rating": [{"judge": JUDGE}],
    "regex": [{"pattern": "e+"}],
    "repetition": [{}],
    "rlaif": [
        {"judge": JUDGE},
    ],
    "sycophancy": [{"column": "right"}],
    "rubric": [{"judge": JUDGE}],
}
CASES = [(name, options) for name, each in OPTIONS.items() for options in each]


def first_party() -> dict[str, type]:
    registrations = plugins().registrations("reward")
    return {one.name: one.implementation for one in registrations if one.distribution == "alignkit"}


def test_every_first_party_reward_is_checked() -> None:
    assert {
        name for name, cls in first_party().items() if not issubclass(cls, RewardCombination)
    } == OPTIONS.keys()


@pytest.mark.parametrize(("name", "options"), CASES, ids=[name for name, _ in CASES])
def test_first_party_rewards_conform(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    groups = None
    if name == "math_verify":
        pytest.importorskip("math_verify")
        groups = [
            Group(group.prompt, group.responses, meta={"right": "7"}) for group in example_groups()
        ]
    if name == "language":
        pytest.importorskip("py3langid")
    if name.startswith(("honesty", "exact_match", "sycophancy")):
        groups = [
            Group(group.prompt, group.responses, meta={"right": ["7"]})
            for group in example_groups()
        ]
    if name == "rubric":
        criteria = [{"text": "It is polite.", "weight": 2}, {"text": "It is short."}]
        groups = [replace(group, meta={"rubric": criteria}) for group in example_groups()]
    if name == "environment":
        groups = [replace(group, responses=_played(group.responses)) for group in example_groups()]
    (tmp_path / "polite.py").write_text(FUNCTION, encoding="utf-8")
    check_reward(first_party()[name], options, folder=tmp_path, groups=groups)


def _played(responses: Sequence[Response]) -> tuple[Response, ...]:
    """As if an environment had given each response a reward of its own."""
    return tuple(
        replace(response, scores={EPISODE_KEY: len(response.text) / 10}) for response in responses
    )


def texts(groups: Sequence[Group]) -> list[str]:
    return [response.text for group in groups for response in group.responses]


class Fits(Reward):
    """A good one, with options."""

    class Options(Options):
        word: str = Field("a", description="the word to look for")

    def score(self, groups: Sequence[Group]) -> Mapping[str, Any]:
        return {"": [float(self.options.word in text) for text in texts(groups)]}


class ComputesOnce(Fits):
    @cached_property
    def weight(self) -> float:
        return 0.5

    def score(self, groups: Sequence[Group]) -> Mapping[str, Any]:
        return {"": [self.weight * len(text) for text in texts(groups)]}


class Ranks(Reward):
    @property
    def within_group(self) -> bool:
        return True

    def score(self, groups: Sequence[Group]) -> Mapping[str, Any]:
        longest = [max(len(response.text) for response in group.responses) for group in groups]
        pairs = [
            (r, most) for group, most in zip(groups, longest, strict=True) for r in group.responses
        ]
        return {"": [len(response.text) - most for response, most in pairs]}


@pytest.mark.parametrize("cls", [Fits, ComputesOnce, Ranks])
def test_good_rewards_conform(cls: type[Reward]) -> None:
    check_reward(cls)


class RanksInSecret(Ranks):
    @property
    def within_group(self) -> bool:
        return False


class NoScore(Reward):
    """Its author's line is that of the class."""


class OneTooFew(Reward):
    def score(self, groups: Sequence[Group]) -> Mapping[str, Any]:
        return {"": [1.0 for _ in texts(groups)][:-1]}


class OnePerGroup(Reward):
    def score(self, groups: Sequence[Group]) -> Mapping[str, Any]:
        return {"": [0.0 for _ in groups]}


class NoNumber(Reward):
    def score(self, groups: Sequence[Group]) -> Mapping[str, Any]:
        return {"": torch.tensor([float(len(text)) for text in texts(groups)]).log().sqrt()}


class NoComponent(Reward):
    def score(self, groups: Sequence[Group]) -> Any:
        return [0.0 for _ in texts(groups)]


class Nothing(Reward):
    def score(self, groups: Sequence[Group]) -> Mapping[str, Any]:
        return {"": [None for _ in texts(groups)]}


class Whitened(Reward):
    def score(self, groups: Sequence[Group]) -> Mapping[str, Any]:
        lengths = torch.tensor([float(len(text)) for text in texts(groups)])
        return {"": (lengths - lengths.mean()).tolist()}


class Counts(Reward):
    seen = 0

    def score(self, groups: Sequence[Group]) -> Mapping[str, Any]:
        self.seen += 1
        return {"": [float(self.seen) for _ in texts(groups)]}


class Novelty(Reward):
    """Rewards what it has not seen yet."""

    def prepare(self, context: Any) -> None:
        super().prepare(context)
        self.known: set[str] = set()

    def score(self, groups: Sequence[Group]) -> Mapping[str, Any]:
        scores = [float(text not in self.known) for text in texts(groups)]
        self.known.update(texts(groups))
        return {"": scores}


class Draws(Reward):
    def score(self, groups: Sequence[Group]) -> Mapping[str, Any]:
        return {"": [random.random() for _ in texts(groups)]}


class ByPlace(Reward):
    def score(self, groups: Sequence[Group]) -> Mapping[str, Any]:
        return {"": [float(index) for group in groups for index, _ in enumerate(group.responses)]}


class FirstWord(Reward):
    def score(self, groups: Sequence[Group]) -> Mapping[str, Any]:
        return {"": [float(len(text.split()[0])) for text in texts(groups)]}


class NeedsAnswer(Reward):
    def check_prompts(self, groups: Sequence[Group]) -> None:
        if any("answer" not in group.meta for group in groups):
            raise DataError("no column 'answer'")

    def score(self, groups: Sequence[Group]) -> Mapping[str, Any]:
        return {"": [0.0 for _ in texts(groups)]}


class NeedsKey(Fits):
    def check(self, folder: Path) -> None:
        raise RunFailed("the variable KEY is not set")


BROKEN: list[tuple[Any, str]] = [
    (NoScore, r"in `NoScore.score`: NotImplementedError"),
    (
        RanksInSecret,
        "`score`: a group for every response changes the score .* `within_group` must return True",
    ),
    (OneTooFew, "[.]score`: return a list of 12, each a finite number.*, not "),
    (OnePerGroup, "[.]score`: return a list of 12, each a finite number.*, not "),
    (NoNumber, r"[.]score`: return a finite number, or None.*, not (nan|-?inf)"),
    (NoComponent, "[.]score`: return one component, such as .*, not "),
    (Nothing, "`score` scores none of the responses: pass others as `groups`"),
    (
        Whitened,
        "`score`: a batch of one group changes the score of response 0 from .* to .*: a score is "
        "computed from",
    ),
    (Counts, r"`score`: a second call changes the score of response 0 from 1.0"),
    (Novelty, r"`score`: a second call changes the score of response 0 from 1.0 to 0.0"),
    (Draws, "`score`: another process changes the score"),
    (ByPlace, "`score`: the order of groups and responses changes the score"),
    (FirstWord, r"[.]score`: IndexError: list index out of range \(test_reward_kit.py:\d+\)"),
    (NeedsAnswer, "NeedsAnswer: no column 'answer'"),
    (NeedsKey, "NeedsKey: the variable KEY is not set"),
    (
        dict,
        "dict: reward 'dict' must be a subclass of alignkit.Reward or "
        "alignkit.RewardCombination, not",
    ),
]


@pytest.mark.parametrize(("cls", "message"), BROKEN, ids=[cls.__name__ for cls, _ in BROKEN])
def test_broken_rewards_are_reported(cls: Any, message: str) -> None:
    with pytest.raises(ConformanceError, match=message) as caught:
        check_reward(cls)
    assert all(line.startswith(f"{cls.__name__}: ") for line in str(caught.value).splitlines())


def test_groups_may_have_columns() -> None:
    groups = [
        Group(group.prompt, group.responses, meta={"answer": "7"}) for group in example_groups()
    ]
    check_reward(NeedsAnswer, groups=groups)
