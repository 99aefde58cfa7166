"""The rules of engines: they sample what they are asked for, from the weights that were published last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from string import ascii_letters
from typing import Any

from alignkit.calls import call, create
from alignkit.data.group import Group
from alignkit.engine import Engine
from alignkit.kinds import launcher
from alignkit.models.generate import Generation, generate
from alignkit.models.packing import measure
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.plugins import plugins
from alignkit.registry import Component
from alignkit.sampling import Sampling
from alignkit.testing.examples import example_groups
from alignkit.testing.rules import Problems
from alignkit.testing.surroundings import SEED, Surroundings, conform
from alignkit.testing.tiny import SPEC, add_noise
from alignkit.tokens.encoder import Encoded, Encoder, Ids, ResponseTokens

TOLERANCE = 1e-3  # nats
NEW_TOKENS = 12
SAMPLES = 3
POLICY = "engine check"

WEIGHTS = "it used other weights, another prompt, another order, or left out the temperature"
REPEAT = "a run that was killed is repeated, and must end in the same bytes"


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
    conform("engine", cls, options, partial(_check_engine, tolerance=tolerance), folder=folder)


def _check_engine(around: Surroundings, component: Component, tolerance: float) -> None:
    early = create(component)
    call(early, "check", around.folder)
    # Not the model that all checks of a process share: an engine reads the base from its folder.
    model = SharedModel(SPEC, str(plugins().registry.get("model", "tiny").implementation(around.cache)))
    model.end_ids = tuple(range(2, model.model.config.vocab_size, 10))  # so that some responses end
    engine = launcher().engine(component, around.cache / "engine", stage="", seed=SEED, say=lambda text: None)
    model.add_role(POLICY)
    add_noise(model, POLICY, 0.1, 1)
    try:
        EngineCheck(engine, model, tolerance, around.problems).check()
    finally:
        engine.close()


@dataclass
class Samples:
    """What an engine was asked, and its answers, a row for each sample."""

    prompts: list[Ids] = field(default_factory=list)
    responses: list[Ids] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)


@dataclass
class EngineCheck:
    """The rules for one engine and policy. Some of the model's end tokens must be likely enough to be sampled."""

    engine: Any  # of the launcher, as in a run
    model: SharedModel
    tolerance: float
    problems: Problems = field(default_factory=Problems)

    @cached_property
    def encoder(self) -> Encoder:
        return self.model.encoder()

    @cached_property
    def prompts(self) -> list[Ids]:
        """Of different lengths, and not in the order of their lengths."""
        return [self.encoder.prompt(group.prompt) for group in example_groups(1)]

    def check(self) -> None:
        """Check every rule in turn. Raises PluginError for what a run itself refuses."""
        self._sample(prompts=[])
        first = self._as_in_training("")
        if type(self.engine.engine).repeats and self._sample().responses != first.responses:
            self.problems.append(f"`sample`: a second call with the same seeds returns other tokens: {REPEAT}")
        if self._sample(seed=1000).responses == first.responses:
            self.problems.append("`sample` returns the same tokens for other seeds")
        self._as_in_training(" of prompts in another order", prompts=self.prompts[::-1])
        self._as_in_training(" at temperature 0.5", temperature=0.5)
        self._as_in_training(" of the base", role=BASE)
        for name, value in {"temperature": 0.0, "top_k": 1, "top_p": 1e-6}.items():
            self._is_greedy(name, value)
        self._sample(max_new_tokens=1)
        self._sample(min_new_tokens=NEW_TOKENS - 1)
        self._sample(stop=[self._common_letter(first)])
        add_noise(self.model, POLICY, 0.1, 2)
        self._as_in_training(" after new weights were published")

    def _sample(
        self, *, role: str = POLICY, seed: int = 0, prompts: Sequence[Ids] | None = None, **sampling: Any
    ) -> Samples:
        prompts = self.prompts if prompts is None else prompts
        seeds = [list(range(first, first + SAMPLES)) for first in range(seed, seed + 10 * len(prompts), 10)]
        asked = Sampling(**{"max_new_tokens": NEW_TOKENS, **sampling})
        samples = Samples()
        request = Generation(self.model, role, self.encoder, prompts, seeds, asked)
        answers = self.engine.request(request).result()
        for prompt, continuations in zip(prompts, answers, strict=True):
            samples.prompts += [prompt] * len(continuations)
            samples.responses += [one.tokens for one in continuations]
            samples.logprobs += [one.logprobs for one in continuations]
        return samples

    def _measured(self, samples: Samples, role: str = POLICY, temperature: float = 1.0) -> list[Any]:
        """The log-probabilities of the training path."""
        rows = []
        for prompt, response in zip(samples.prompts, samples.responses, strict=True):
            rows.append(Encoded(Group(()), prompt, (ResponseTokens(response, (True,) * len(response)),)))
        return list(measure(self.model, role, rows, "logprobs", temperature=temperature))

    def _as_in_training(self, which: str, *, role: str = POLICY, temperature: float = 1.0, **more: Any) -> Samples:
        """Sample, and compare the log-probabilities that the engine reports with those of the training path."""
        samples, gap = self._sample(role=role, temperature=temperature, **more), 0.0
        what = f"`sample`: the log-probabilities{which}"
        if None in samples.logprobs:
            self.problems.append(f"{what} are None, which is for top_k, top_p and min_new_tokens only")
            return samples
        for measured, reported in zip(self._measured(samples, role, temperature), samples.logprobs, strict=True):
            gap = max([gap, *(abs(float(a) - float(b)) for a, b in zip(measured, reported, strict=True))])
        if gap > self.tolerance:
            self.problems.append(f"{what} differ from training's by up to {gap:.3g} nats: {WEIGHTS}")
        return samples

    def _is_greedy(self, name: str, value: Any) -> None:
        """Check that first tokens are as likely as those of alignkit's own greedy samples."""
        samples = self._sample(**{name: value})
        likeliest, seeds = Sampling(max_new_tokens=1, temperature=0.0), [[0]] * len(samples.prompts)
        best = generate(Generation(self.model, POLICY, self.encoder, samples.prompts, seeds, likeliest))
        firsts = Samples(samples.prompts, [response[:1] for response in samples.responses])
        bests = Samples(samples.prompts, [one.tokens for (one,) in best])
        for ours, theirs in zip(self._measured(bests), self._measured(firsts), strict=True):
            if float(theirs[0]) < float(ours[0]) - self.tolerance:
                self.problems.append(f"`sample`: with {name} {value:g} a first token is not the most likely one")
                return

    def _common_letter(self, samples: Samples) -> str:
        """The letter that most samples contain."""
        texts = [set(self.encoder.decode(response)) for response in samples.responses]
        return max(ascii_letters, key=lambda letter: sum(letter in text for text in texts))
