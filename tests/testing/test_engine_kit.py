"""The conformance kit of engines: those that come with alignkit pass it, and broken ones are
refused by name.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignkit import Completion, Sampling
from alignkit.models.shared_model import BASE
from alignkit.testing import check_engine
from alignkit.testing.surroundings import ConformanceError
from tests.processes.local_engine import LocalEngine

Completions = list[list[Completion]]

pytestmark = pytest.mark.usefixtures("one_thread")


def test_what_samples_as_alignkit_does_conforms() -> None:
    check_engine(LocalEngine)


class Broken(LocalEngine):
    """Samples correctly; its subclasses change one thing."""

    def sample(self, policy: str, prompts: Any, seeds: Any, sampling: Sampling) -> Any:
        return [
            [self.changed(one) for one in each]
            for each in super().sample(policy, prompts, seeds, sampling)
        ]

    def changed(self, one: Completion) -> Completion:
        return one


class OldVersion(Broken):
    def publish(self, policy: str, adapter: Path | None, version: int) -> None:
        if policy not in self._policies:
            super().publish(policy, adapter, version)


class OldWeights(OldVersion):
    """It says that it used the new ones."""

    def publish(self, policy: str, adapter: Path | None, version: int) -> None:
        super().publish(policy, adapter, version)
        self._policies[policy] = (self._policies[policy][0], version)


class Foreign(Broken):
    def changed(self, one: Completion) -> Completion:
        return replace(one, tokens=[*one.tokens[:-1], self.context.vocabulary])


class Negative(Broken):
    def changed(self, one: Completion) -> Completion:
        return replace(one, tokens=[-1, *one.tokens[1:]])


class Words(Broken):
    def changed(self, one: Completion) -> Completion:
        return replace(one, tokens=list(map(str, one.tokens)))


class Long(Broken):
    def changed(self, one: Completion) -> Completion:
        return replace(one, tokens=[*one.tokens, *[7] * 12], logprobs=[*one.logprobs, *[-1.0] * 12])


class NotANumber(Broken):
    def changed(self, one: Completion) -> Completion:
        return replace(one, logprobs=[*one.logprobs[:-1], float("nan")])


class Likely(Broken):
    def changed(self, one: Completion) -> Completion:
        return replace(one, logprobs=[-logprob for logprob in one.logprobs])


class Fewer(Broken):
    def changed(self, one: Completion) -> Completion:
        return replace(one, logprobs=one.logprobs[1:])


class Cut(Broken):
    def changed(self, one: Completion) -> Completion:
        return replace(one, tokens=one.tokens[:1], logprobs=one.logprobs[:1])


class Missing(Broken):
    def sample(self, policy: str, prompts: Any, seeds: Any, sampling: Sampling) -> Any:
        return super().sample(policy, prompts, seeds, sampling)[:-1]


class OneSample(Broken):
    def sample(self, policy: str, prompts: Any, seeds: Any, sampling: Sampling) -> Any:
        return [each[:1] for each in super().sample(policy, prompts, seeds, sampling)]


class Turned(Broken):
    def sample(self, policy: str, prompts: Any, seeds: Any, sampling: Sampling) -> Any:
        return super().sample(policy, prompts, seeds, sampling)[::-1]


class ByLength(Broken):
    """Right for the order in which it likes prompts."""

    def sample(self, policy: str, prompts: Any, seeds: Any, sampling: Sampling) -> Any:
        return super().sample(policy, sorted(prompts, key=len), seeds, sampling)


class OwnTemplate(Broken):
    def sample(self, policy: str, prompts: Any, seeds: Any, sampling: Sampling) -> Any:
        return super().sample(policy, [[1, *prompt] for prompt in prompts], seeds, sampling)


class NoTemperature(Broken):
    def sample(self, policy: str, prompts: Any, seeds: Any, sampling: Sampling) -> Any:
        return super().sample(
            policy,
            prompts,
            seeds,
            sampling.model_copy(update={"temperature": float(sampling.temperature > 0)}),
        )


class NoFilter(Broken):
    def sample(self, policy: str, prompts: Any, seeds: Any, sampling: Sampling) -> Any:
        return super().sample(policy, prompts, seeds, sampling.model_copy(update={"top_k": 0}))


class NoNumbers(Broken):
    def changed(self, one: Completion) -> Completion:
        return replace(one, logprobs=None)


class OwnSeeds(Broken):
    drawn = itertools.count()

    def sample(self, policy: str, prompts: Any, seeds: Any, sampling: Sampling) -> Any:
        return super().sample(
            policy, prompts, [[next(self.drawn) for _ in each] for each in seeds], sampling
        )


class OneSeed(Broken):
    def sample(self, policy: str, prompts: Any, seeds: Any, sampling: Sampling) -> Any:
        return super().sample(policy, prompts, [[7] * len(each) for each in seeds], sampling)


class Crashes(Broken):
    def sample(self, policy: str, prompts: Any, seeds: Any, sampling: Sampling) -> Any:
        return prompts[99]


class Tuples(Broken):
    def changed(self, one: Completion) -> Any:
        return (one.tokens, one.logprobs)


class Asleep(Broken):
    """It loses the weights of policies whenever it is idle."""

    def idle(self) -> None:
        for policy, (role, version) in list(self._policies.items()):
            if role != BASE:
                self._policies[policy] = BASE, version


class NeverWakes(Broken):
    asleep = False

    def idle(self) -> None:
        self.asleep = True

    def sample(self, policy: str, prompts: Any, seeds: Any, sampling: Sampling) -> Any:
        assert not self.asleep, "it sleeps"
        return super().sample(policy, prompts, seeds, sampling)


BROKEN: Sequence[tuple[type[Broken], str]] = (
    (
        OldVersion,
        r"it used version \d+ of the weights of 'engine check', but version \d+ was published",
    ),
    (
        OldWeights,
        "the log-probabilities after new weights were published differ from training's by up to "
        ".* nats",
    ),
    (Foreign, r"for prompt 0, sample 0 token (\d+) is not in the vocabulary of \1"),
    (Negative, "for prompt 0, sample 0 token -1 is not in the vocabulary"),
    (Words, "[.]sample`: TypeError: 'str' object cannot be interpreted as an integer"),
    (Long, r"it returned \d\d tokens; max_new_tokens is 12"),
    (NotANumber, "for prompt 0, sample 0 a log-probability is nan"),
    (Likely, r"for prompt 0, sample 0 a log-probability is \d"),
    (Fewer, r"it returned \d+ tokens, but \d+ log-probabilities"),
    (Cut, "a response of 1 tokens has neither an end token nor a stop text"),
    (Missing, r"return a list of 4, each a list of Completions, not \[\["),
    (OneSample, r"return a list of 3, each a Completion, for prompt 0, not \["),
    (Turned, "the log-probabilities differ from training's"),
    (ByLength, "the log-probabilities.* differ from training's"),
    (OwnTemplate, "the log-probabilities differ from training's"),
    (NoTemperature, "the log-probabilities at temperature 0.5 differ from training's"),
    (NoFilter, "with top_k 1 a first token is not the most likely one"),
    (
        NoNumbers,
        "the log-probabilities are None, which is for top_k, top_p and min_new_tokens only",
    ),
    (OwnSeeds, "a second call with the same seeds returns other tokens"),
    (OneSeed, "returns the same tokens for other seeds"),
    (Crashes, r"[.]sample`: IndexError: list index out of range \(test_engine_kit.py:\d+\)"),
    (Tuples, r"return a Completion, for prompt 0, not \(\("),
    (Asleep, "differ from training's"),
    (NeverWakes, "[.]sample`: AssertionError: it sleeps"),
)


@pytest.mark.silent_bug(
    "sampling: log-probabilities",
    "A log-probability that the engine does not return becomes 0, which means certainty.",
    "An engine must return a finite number for each token.",
    "NVIDIA-NeMo/RL#4218",
)
@pytest.mark.parametrize(
    ("engine", "message"), BROKEN, ids=lambda value: getattr(value, "__name__", "")
)
def test_broken_engines_are_refused(engine: type[Broken], message: str) -> None:
    with pytest.raises(ConformanceError, match=message) as raised:
        check_engine(engine)
    assert str(raised.value).startswith(f"{engine.__name__}: ")
