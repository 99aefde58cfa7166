"""The rules of engines: they sample what they are asked for, from the weights that were published last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from string import ascii_letters
from typing import Any

import psutil

from alignkit.calls import call, create
from alignkit.data.group import Group
from alignkit.engine import Engine
from alignkit.launcher import launcher
from alignkit.models.generate import Continuation, Generation, generate
from alignkit.models.packing import measure
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.plugins import plugins
from alignkit.registry import Component
from alignkit.sampling import Sampling
from alignkit.testing.examples import example_groups
from alignkit.testing.surroundings import SEED, Surroundings, conform
from alignkit.testing.tiny import SPEC, add_noise
from alignkit.tokens.encoder import Encoded, Encoder, Ids, ResponseTokens

TOLERANCE = 1e-3  # nats
NEW_TOKENS = 12
SAMPLES = 3
LEAVING = 5.0  # seconds for the processes of an engine to end after `close`
POLICY = "engine check"

WEIGHTS = "it used other weights, another prompt, another order, or left out the temperature"
REPEAT = "a run that was killed is repeated, and must end in the same bytes"

Samples = list[list[Continuation]]


def check_engine(
    cls: type[Engine],
    options: Mapping[str, Any] | None = None,
    *,
    folder: Path | None = None,
    tolerance: float = TOLERANCE,
) -> None:
    """Raise ConformanceError listing every rule that an engine breaks (see the table in `alignkit.testing`).

    The base is the model `tiny` in float32 on the CPU, and the policy an adapter on it.

    Args:
        options: As in a recipe.
        folder: The recipe's; default: the current one.
        tolerance: Largest difference of a log-probability from training's, in nats; raise it for an engine that
            computes less precisely.
    """
    conform("engine", cls, options, partial(_problems, tolerance=tolerance), folder=folder)


def _problems(around: Surroundings, component: Component, tolerance: float) -> Iterator[str]:
    early = create(component)
    call(early, "check", around.folder)
    # Not the model that all checks of a process share: an engine reads the base from its folder.
    model = SharedModel(SPEC, str(plugins().registry.get("model", "tiny").implementation(around.cache)))
    model.end_ids = tuple(range(2, model.model.config.vocab_size, 10))  # so that some responses end
    said: list[str] = []
    engine = launcher().engine(component, around.cache / "engine", stage="", seed=SEED, say=said.append)
    model.add_role(POLICY)
    add_noise(model, POLICY, 0.1, 1)
    before = _processes()
    try:
        yield from EngineCheck(engine, model, tolerance).problems()
    finally:
        engine.close()
    yield from (line for line in said if line.startswith("warning:"))
    psutil.wait_procs(_processes() - before, timeout=LEAVING)
    for process in _processes() - before:
        yield f"`close` leaves a process behind: {' '.join(process.cmdline())[:200]} (process {process.pid})"


def _processes() -> set[psutil.Process]:
    """All that this process has started, without those that Python keeps for its `multiprocessing`."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE and not any("multiprocessing" in w for w in process.cmdline()):
                found.add(process)
    return found


@dataclass
class EngineCheck:
    """The rules for one engine and policy. Some of the model's end tokens must be likely enough to be sampled."""

    engine: Any  # of the launcher, as in a run
    model: SharedModel
    tolerance: float

    @cached_property
    def encoder(self) -> Encoder:
        return self.model.encoder()

    def problems(self) -> Iterator[str]:
        """Every rule in turn; what the run itself refuses is raised as PluginError."""
        plain = Sampling(max_new_tokens=NEW_TOKENS)
        self.engine.request(Generation(self.model, POLICY, self.encoder, [], [], plain)).result()
        found = self.sample(plain)
        yield from self._gaps("", found)
        if type(self.engine.engine).repeats and self._tokens(self.sample(plain)) != self._tokens(found):
            yield f"`sample`: a second call with the same seeds returns other tokens: {REPEAT}"
        if self._tokens(self.sample(plain, seed=1000)) == self._tokens(found):
            yield "`sample` returns the same tokens for other seeds"
        yield from self._gaps(" of prompts in another order", self.sample(plain, turned=True), turned=True)
        yield from self._gaps(
            " at temperature 0.5", self.sample(Sampling(max_new_tokens=NEW_TOKENS, temperature=0.5)), temperature=0.5
        )
        yield from self._gaps(" of the base", self.sample(plain, role=BASE), role=BASE)
        yield from self._greedy(Sampling(max_new_tokens=NEW_TOKENS, temperature=0.0), "temperature 0")
        yield from self._greedy(Sampling(max_new_tokens=NEW_TOKENS, top_k=1), "top_k 1")
        yield from self._greedy(Sampling(max_new_tokens=NEW_TOKENS, top_p=1e-6), "top_p 1e-06")
        self.sample(Sampling(max_new_tokens=1))
        self.sample(Sampling(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS - 1))
        self.sample(Sampling(max_new_tokens=NEW_TOKENS, stop=[self._common_text(found)]))
        add_noise(self.model, POLICY, 0.1, 2)
        yield from self._gaps(" after new weights were published", self.sample(plain))

    @property
    def prompts(self) -> list[Ids]:
        """Of different lengths, and not in the order of their lengths."""
        return [self.encoder.prompt(group.prompt) for group in example_groups(1)]

    def sample(self, sampling: Sampling, *, role: str = POLICY, seed: int = 0, turned: bool = False) -> Samples:
        seeds = [[seed + 10 * p + k for k in range(SAMPLES)] for p in range(len(self.prompts))]
        prompts = self.prompts[::-1] if turned else self.prompts
        request = Generation(self.model, role, self.encoder, prompts, seeds, sampling)
        samples: Samples = self.engine.request(request).result()
        return samples

    def _gaps(
        self, which: str, found: Samples, *, role: str = POLICY, temperature: float = 1.0, turned: bool = False
    ) -> Iterator[str]:
        """Compare the log-probabilities that the engine reports with those of the training path."""
        rows = self._rows(found, self.prompts[::-1] if turned else self.prompts)
        measured = measure(self.model, role, [_encoded(*row) for row in rows], "logprobs", temperature=temperature)
        reported = [one.logprobs for each in found for one in each]
        yield from self._differences(f"`sample`: the log-probabilities{which}", measured, reported)

    def _differences(self, what: str, measured: Sequence[Any], reported: Sequence[Any]) -> Iterator[str]:
        if any(one is None for one in reported):
            yield f"{what} are None, which is for top_k, top_p and min_new_tokens only"
            return
        gap = max(
            abs(float(a) - float(b)) for m, r in zip(measured, reported, strict=True) for a, b in zip(m, r, strict=True)
        )
        if gap > self.tolerance:
            yield f"{what} differ from training's by up to {gap:.3g} nats: {WEIGHTS}"

    def _greedy(self, sampling: Sampling, name: str) -> Iterator[str]:
        """The first token must be the most likely one: the best of the local engine's greedy samples, or a tie."""
        seeds, likeliest = [[0]] * len(self.prompts), Sampling(max_new_tokens=1, temperature=0.0)
        best = generate(Generation(self.model, POLICY, self.encoder, self.prompts, seeds, likeliest))
        found = self.sample(sampling)
        first = [[replace(one, tokens=one.tokens[:1]) for one in each] for each in found]
        rows = [_encoded(*row) for row in self._rows(first, self.prompts)]
        measured = iter(measure(self.model, POLICY, rows, "logprobs"))  # an engine may not report them with filters
        highest = [float((one.logprobs or ())[0]) for (one,) in best]
        pairs = [(float(next(measured)), highest[p]) for p, each in enumerate(first) for _ in each]
        if any(logprob < best - self.tolerance for logprob, best in pairs):
            yield f"`sample`: with {name} a first token is not the most likely one"

    def _rows(self, found: Samples, prompts: Sequence[Ids]) -> list[tuple[Ids, Ids]]:
        return [(prompt, one.tokens) for prompt, each in zip(prompts, found, strict=True) for one in each]

    def _common_text(self, found: Samples) -> str:
        """The letter that most samples contain."""
        texts = [self.encoder.decode(one.tokens) for each in found for one in each]
        counts = {letter: sum(letter in text for text in texts) for letter in ascii_letters}
        return max(counts, key=counts.__getitem__)

    def _tokens(self, found: Samples) -> list[list[Ids]]:
        return [[one.tokens for one in each] for each in found]


def _encoded(prompt: Ids, response: Ids) -> Encoded:
    return Encoded(Group(()), prompt, (ResponseTokens(response, (True,) * len(response)),))
