"""The rules of engines: they sample what they are asked for, from the weights that were published
last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from alignkit.contract.engine import Engine
from alignkit.contract.settings import Sampling
from alignkit.host.calls import call, create
from alignkit.host.plugins import launcher
from alignkit.host.registry import Component
from alignkit.models.generate import SamplingRequest
from alignkit.models.packing import measure, read_prompts
from alignkit.models.shared_model import UNMODIFIED, SharedModel, Wants
from alignkit.testing.examples import example_groups
from alignkit.testing.surroundings import SEED, Surroundings, Violations, conform
from alignkit.testing.tiny import SPEC, add_noise, tiny_folder
from alignkit.tokens.encoder import Encoded, Encoder, Ids

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
    """Raise ConformanceError listing every rule that an engine breaks (see the table in
    `alignkit.testing`).

    The base is the model `tiny` in float32 on the CPU, and the policy an adapter on it.

    Args:
        options: As in a recipe.
        folder: The recipe's; default: the current one.
        tolerance: Largest difference of a log-probability from training's, in nats; raise it for an
            engine that computes less precisely.
    """
    conform("engine", cls, options, partial(_check_engine, tolerance=tolerance), folder=folder)


def _check_engine(around: Surroundings, component: Component, tolerance: float) -> None:
    early = create(component)
    call(early, "check", around.folder)
    # Not the model that all checks of a process share: an engine reads the base from its folder.
    model = SharedModel(SPEC, tiny_folder(around.cache))
    model.end_ids = tuple(range(2, model.model.config.vocab_size, 10))  # so that some responses end
    engine = launcher().engine(
        component, around.cache / "engine", stage="", seed=SEED, say=lambda text: None
    )
    model.add_role(POLICY)
    add_noise(model, POLICY, 0.1, 1)
    try:
        EngineCheck(engine, model, tolerance, around.problems).check()
    finally:
        engine.close()


class Sample(NamedTuple):
    """An answer of an engine."""

    prompt: Ids
    response: Ids
    logprobs: Any


@dataclass
class EngineCheck:
    """The rules for one engine and policy. Some of the model's end tokens must be likely enough to
    be sampled.
    """

    engine: Any  # the launcher's, as in a run
    model: SharedModel
    tolerance: float
    problems: Violations = field(default_factory=Violations)

    @cached_property
    def encoder(self) -> Encoder:
        return self.model.encoder()

    @cached_property
    def prompts(self) -> list[Ids]:
        """Prompts of different lengths, not in the order of their lengths."""
        return [self.encoder.prompt(group.prompt) for group in example_groups(1)]

    def check(self) -> None:
        """Check every rule in turn. Raises PluginError for what a run itself refuses."""
        first = self._as_in_training("")
        if type(self.engine.engine).repeats and self._responses() != first:
            self.problems.append(
                f"`sample`: a second call with the same seeds returns other tokens: {REPEAT}"
            )
        if self._responses(seed=1000) == first:
            self.problems.append("`sample` returns the same tokens for other seeds")
        self._as_in_training(" at temperature 0.5", temperature=0.5)
        self._as_in_training(" of the base", role=UNMODIFIED)
        for name, value in {"temperature": 0.0, "top_k": 1, "top_p": 1e-6}.items():
            self._is_greedy(name, value)
        add_noise(self.model, POLICY, 0.1, 2)
        self._as_in_training(" after new weights were published")

    def _sample(self, *, role: str = POLICY, seed: int = 0, **sampling: Any) -> list[Sample]:
        seeds = [
            list(range(first, first + SAMPLES))
            for first in range(seed, seed + 10 * len(self.prompts), 10)
        ]
        options = Sampling(**{"max_new_tokens": NEW_TOKENS, **sampling})
        answers = self.engine.request(
            SamplingRequest(self.model, role, self.encoder, self.prompts, seeds, options)
        ).result()
        samples: list[Sample] = []
        for prompt, completions in zip(self.prompts, answers, strict=True):
            samples += [Sample(prompt, tuple(one.tokens), one.logprobs) for one in completions]
        return samples

    def _responses(self, seed: int = 0) -> list[Ids]:
        return [sample.response for sample in self._sample(seed=seed)]

    def _as_in_training(
        self, which: str, *, role: str = POLICY, temperature: float = 1.0
    ) -> list[Ids]:
        """Compare the log-probabilities that the engine reports with those of the training path;
        returns responses.
        """
        samples, gap = self._sample(role=role, temperature=temperature), 0.0
        what = f"`sample`: the log-probabilities{which}"
        responses = [sample.response for sample in samples]
        if any(sample.logprobs is None for sample in samples):
            self.problems.append(
                f"{what} are None, which is for top_k, top_p and min_new_tokens only"
            )
            return responses
        encoded = [Encoded.of(sample.prompt, sample.response) for sample in samples]
        measured = measure(self.model, role, encoded, Wants(temperature=temperature))["logprobs"]
        for own, sample in zip(measured, samples, strict=True):
            gap = max(gap, float((own - torch.tensor(sample.logprobs)).abs().max()))
        if gap > self.tolerance:
            self.problems.append(
                f"{what} differ from training's by up to {gap:.3g} nats: {WEIGHTS}"
            )
        return responses

    def _is_greedy(self, name: str, value: Any) -> None:
        """Check that first tokens are as likely as the likeliest ones."""
        with torch.no_grad():
            _, hidden = read_prompts(self.model, POLICY, self.prompts)
            logprobs = torch.log_softmax(self.model.next_logits(POLICY, hidden), dim=-1)
        of_prompt = dict(zip(self.prompts, logprobs, strict=True))
        for sample in self._sample(**{name: value}):
            found = of_prompt[sample.prompt]
            if found[sample.response[0]] < found.max() - self.tolerance:
                self.problems.append(
                    f"`sample`: with {name} {value:g} a first token is not the most likely one"
                )
                return
