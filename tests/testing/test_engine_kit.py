"""The kit of engines: what samples as alignkit does passes, and broken engines are refused by
name.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignkit import Completion, Sampling
from alignkit.models.shared_model import BASE
from alignkit.testing import check_engine
from alignkit.testing.surroundings import ConformanceError
from tests.processes.local_engine import LocalEngine

pytestmark = pytest.mark.usefixtures("one_thread")


def test_what_samples_as_alignkit_does_conforms() -> None:
    check_engine(LocalEngine)


def refused(engine: type[LocalEngine], message: str) -> None:
    with pytest.raises(ConformanceError, match=message) as raised:
        check_engine(engine)
    assert str(raised.value).startswith(f"{engine.__name__}: ")


def longer(one: Completion) -> Completion:
    logprobs = [*(one.logprobs or ()), *[-1.0] * 12]
    return replace(one, tokens=[*one.tokens, *[7] * 12], logprobs=logprobs)


@pytest.mark.silent_bug(
    "sampling: log-probabilities",
    "A log-probability that the engine does not return becomes 0, which means certainty.",
    "An engine must return a finite number for each token.",
    "NVIDIA-NeMo/RL#4218",
)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda one: replace(one, tokens=[*one.tokens[:-1], 10**6]), "1000000 is not in the voc"),
        (lambda one: replace(one, tokens=[-1, *one.tokens[1:]]), "token -1 is not in the vocab"),
        (lambda one: replace(one, tokens=list(map(str, one.tokens))), "[.]sample`: TypeError"),
        (longer, r"it returned \d\d tokens; max_new_tokens is 12"),
        (lambda one: replace(one, logprobs=[*one.logprobs[:-1], float("nan")]), "is nan"),
        (lambda one: replace(one, logprobs=[-each for each in one.logprobs]), r"probability is \d"),
        (lambda one: replace(one, logprobs=one.logprobs[1:]), r"but \d+ log-probabilities"),
        (
            lambda one: replace(one, tokens=one.tokens[:1], logprobs=one.logprobs[:1]),
            "a response of 1 tokens has neither an end token nor a stop text",
        ),
        (lambda one: replace(one, logprobs=None), "the log-probabilities are None"),
        (lambda one: (one.tokens, one.logprobs), "return a Completion, for prompt 0"),
    ],
)
def test_broken_completions_are_refused(changed: Callable[[Completion], Any], message: str) -> None:
    class Broken(LocalEngine):
        def sample(self, *asked: Any) -> Any:
            return [[changed(one) for one in each] for each in super().sample(*asked)]

    refused(Broken, message)


OWN = itertools.count()
Sampled = Callable[[Any, Any, Sampling], Any]


def by_length(sample: Sampled, prompts: Any, seeds: Any, sampling: Sampling) -> Any:
    """Right for the order in which it likes prompts."""
    return sample(sorted(prompts, key=len), seeds, sampling)


def own_seeds(sample: Sampled, prompts: Any, seeds: Any, sampling: Sampling) -> Any:
    return sample(prompts, [[next(OWN) for _ in each] for each in seeds], sampling)


def no_temperature(sample: Sampled, prompts: Any, seeds: Any, sampling: Sampling) -> Any:
    temperature = float(sampling.temperature > 0)
    return sample(prompts, seeds, sampling.model_copy(update={"temperature": temperature}))


@pytest.mark.parametrize(
    ("way", "message"),
    [
        (lambda sample, *asked: sample(*asked)[:-1], "return a list of 4, each a list of Compl"),
        (lambda sample, *asked: [each[:1] for each in sample(*asked)], "return a list of 3"),
        (lambda sample, *asked: sample(*asked)[::-1], "the log-probabilities differ"),
        (by_length, "the log-probabilities.* differ from training's"),
        (
            lambda sample, prompts, *asked: sample([[1, *each] for each in prompts], *asked),
            "the log-probabilities differ from training's",
        ),
        (no_temperature, "the log-probabilities at temperature 0.5 differ from training's"),
        (
            lambda sample, prompts, seeds, sampling: sample(
                prompts, seeds, sampling.model_copy(update={"top_k": 0})
            ),
            "with top_k 1 a first token is not the most likely one",
        ),
        (own_seeds, "a second call with the same seeds returns other tokens"),
        (
            lambda sample, prompts, seeds, sampling: sample(
                prompts, [[7] * len(each) for each in seeds], sampling
            ),
            "returns the same tokens for other seeds",
        ),
        (lambda sample, prompts, *asked: prompts[99], r"IndexError.*_engine_kit.py:\d+\)"),
    ],
)
def test_engines_that_sample_otherwise_are_refused(way: Any, message: str) -> None:
    class Broken(LocalEngine):
        def sample(self, policy: str, *asked: Any) -> Any:
            def sample(*asked: Any) -> Any:
                return super(Broken, self).sample(policy, *asked)

            return way(sample, *asked)

    refused(Broken, message)


class OldVersion(LocalEngine):
    def publish(self, policy: str, adapter: Path | None, version: int) -> None:
        if policy not in self._policies:
            super().publish(policy, adapter, version)


class OldWeights(OldVersion):
    """It says that it used the new ones."""

    def publish(self, policy: str, adapter: Path | None, version: int) -> None:
        super().publish(policy, adapter, version)
        self._policies[policy] = (self._policies[policy][0], version)


class Asleep(LocalEngine):
    """It loses the weights of policies whenever it is idle."""

    def idle(self) -> None:
        for policy, (role, version) in list(self._policies.items()):
            if role != BASE:
                self._policies[policy] = BASE, version


class NeverWakes(LocalEngine):
    asleep = False

    def idle(self) -> None:
        self.asleep = True

    def sample(self, *asked: Any) -> Any:
        assert not self.asleep, "it sleeps"
        return super().sample(*asked)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (OldVersion, r"it used version \d+ .*, but version \d+ was published"),
        (OldWeights, "after new weights were published differ from training's"),
        (Asleep, "differ from training's"),
        (NeverWakes, "[.]sample`: AssertionError: it sleeps"),
    ],
)
def test_engines_that_keep_the_wrong_weights_are_refused(
    engine: type[LocalEngine], message: str
) -> None:
    refused(engine, message)
