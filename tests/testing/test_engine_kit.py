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
from alignkit.models.shared_model import UNMODIFIED
from alignkit.testing import check_engine
from tests.processes.local_engine import LocalEngine
from tests.testing.kits import reported

pytestmark = pytest.mark.usefixtures("one_thread")


def test_what_samples_as_alignkit_does_conforms() -> None:
    check_engine(LocalEngine)


Change = Callable[[list[Any], list[Any]], tuple[list[Any], Any]]


@pytest.mark.silent_bug(
    "sampling: log-probabilities",
    "A log-probability that the engine does not return becomes 0, which means certainty.",
    "An engine must return a finite number for each token.",
    "NVIDIA-NeMo/RL#4218",
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids, known: ([*ids[:-1], 10**6], known), "1000000 is not in the voc"),
        (lambda ids, known: ([-1, *ids[1:]], known), "token -1 is not in the vocab"),
        (
            lambda ids, known: (ids + ids * 12, known + known * 12),
            r"it returned \d+ tokens; max_new",
        ),
        (lambda ids, known: (ids, [*known[:-1], float("nan")]), "is nan"),
        (lambda ids, known: (ids, [-each for each in known]), r"probability is \d"),
        (lambda ids, known: (ids, known[1:]), r"but \d+ log-probabilities"),
        (lambda ids, known: (ids[:1], known[:1]), "1 tokens has neither an end token nor a stop"),
        (lambda ids, known: (ids, None), "the log-probabilities are None"),
        (lambda ids, known: (ids, [each - 0.01 for each in known] or None), "up to 0.01 nats"),
    ],
)
def test_broken_completions_are_refused(change: Change, message: str) -> None:
    def broken(one: Completion) -> Completion:
        tokens, logprobs = change([*one.tokens], [*(one.logprobs or ())])
        return replace(one, tokens=tokens, logprobs=logprobs)

    class Broken(LocalEngine):
        def sample(self, *asked: Any) -> Any:
            return [list(map(broken, each)) for each in super().sample(*asked)]

    reported(check_engine, Broken, message)


OWN = itertools.count()
Sample = Callable[[Any, Any, Sampling], Any]


def by_length(sample: Sample, prompts: Any, *asked: Any) -> Any:
    """Right for the order in which it likes prompts."""
    return sample(sorted(prompts, key=len), *asked)


def with_seeds(seed: Callable[[], int]) -> Any:
    return lambda sample, prompts, seeds, sampling: sample(
        prompts, [[seed() for _ in each] for each in seeds], sampling
    )


def changing(**changes: Callable[[Any], Any]) -> Any:
    """It samples with other options."""

    def way(sample: Sample, prompts: Any, seeds: Any, sampling: Sampling) -> Any:
        update = {name: change(getattr(sampling, name)) for name, change in changes.items()}
        return sample(prompts, seeds, sampling.model_copy(update=update))

    return way


@pytest.mark.parametrize(
    ("way", "message"),
    [
        (lambda sample, *asked: sample(*asked)[:-1], "return a list of 4, each a list of Compl"),
        (lambda sample, *asked: [each[:1] for each in sample(*asked)], "return a list of 3"),
        (lambda sample, *asked: [[0] * 3] * 4, "return a Completion, for prompt 0"),
        (by_length, "the log-probabilities.* differ from training's"),
        (
            changing(temperature=lambda value: float(value > 0)),
            "the log-probabilities at temperature 0.5 differ from training's",
        ),
        (changing(top_p=lambda p: 1.0), "with top_p 1e-06 a first token is not the"),
        (changing(temperature=lambda value: value or 1.0), "with temperature 0 a first token"),
        (changing(top_k=lambda k: 0), "with top_k 1 a first token is not the most likely one"),
        (with_seeds(OWN.__next__), "a second call with the same seeds returns other tokens"),
        (with_seeds(lambda: 7), "returns the same tokens for other seeds"),
    ],
)
def test_engines_that_sample_otherwise_are_refused(way: Any, message: str) -> None:
    class Broken(LocalEngine):
        def sample(self, policy: str, *asked: Any) -> Any:
            def sample(*asked: Any) -> Any:
                return super(Broken, self).sample(policy, *asked)

            return way(sample, *asked)

    reported(check_engine, Broken, message)


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
            if role != UNMODIFIED:
                self._policies[policy] = UNMODIFIED, version


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (OldVersion, r"it used version \d+ .*, but version \d+ was published"),
        (OldWeights, "after new weights were published differ from training's"),
        (Asleep, "differ from training's"),
    ],
)
def test_engines_that_keep_the_wrong_weights_are_refused(
    engine: type[LocalEngine], message: str
) -> None:
    reported(check_engine, engine, message)
