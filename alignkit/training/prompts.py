"""The prompts of a stage, and the current policy's samples.

Also whether what samples is the policy that learns, by the log-probabilities of both: they differ a
little if an engine rounds in another way, and much if it has other weights or reads another prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from alignkit.data.group import (
    Group,
    Response,
    group_from_json,
    group_to_json,
    prompts_of,
    responses_of,
    with_responses,
)
from alignkit.errors import DataError
from alignkit.models.generate import StageEngine, attach, build_request
from alignkit.models.shared_model import SharedModel
from alignkit.recipe.sources import Loaded
from alignkit.training.data_sampler import make_data_sampler
from alignkit.training.trainer import Trainer


def usable_prompts(
    trainer: Trainer, spec: Any, key: str, episodes: Any = None
) -> tuple[Loaded, list[Group]]:
    """The prompts of a data entry of the stage, without those that leave no room for a response;
    says how many go.
    """
    stage = trainer.stage
    new_tokens = stage.settings.rollout.max_new_tokens
    loaded = stage.load(spec)
    groups = prompts_of(loaded.groups)
    if episodes is not None:
        groups = episodes.with_tools(groups)
    trainer.encoder.count_read(groups)
    usable = [encoded.group for encoded in trainer.encoder.encode(groups, new_tokens=new_tokens)]
    if not usable:
        room = f"no room for {new_tokens} new tokens in max_length {trainer.encoder.max_length}"
        raise DataError(
            f"stage '{stage.name}': no row of '{key}' is a prompt to answer, or there is {room}"
        )
    return loaded, usable


@dataclass
class Samples:
    """The policy's responses to the prompts of an iteration, which learns from them.

    number: the iteration's.
    """

    number: int
    groups: list[Group]
    metrics: dict[str, float]


@dataclass
class SamplesUnderWay:
    """The current policy's responses to some prompts, which an engine may write while something
    else is computed (`rollout: {async_level: 1}`), but only the first turns of episodes.

    number: of the iteration that learns from them. samples: of each prompt. purpose: names the
    random streams, with the iteration and the prompts' numbers from `first` on. async_level: updates
    between the weights that write and those that learn. episodes: play the stage's environment.
    """

    trainer: Trainer
    prompts: Sequence[Group]
    number: int
    samples: int
    purpose: str = "rollout"
    first: int = 0
    async_level: int = 0
    episodes: Any = None

    def __post_init__(self) -> None:
        self.stage = stage = self.trainer.stage
        self.rollout, collectives = self.trainer.settings.rollout, stage.collectives
        engine, self.sizes = stage.models.engine, [1] * len(self.prompts)
        self.main_only = engine.samples_for_all
        own = collectives.partition(self.sizes, self.main_only)[collectives.process]
        # Streams are named by the place in the iteration, so a sample does not depend on who draws
        # it.
        numbers = [self.first + index for index in own]
        self.own_prompts = [self.prompts[index] for index in own]
        if self.episodes is not None:
            if not self.first:
                self.episodes.forget()
            self.own_prompts = self.episodes.begin(
                self.own_prompts, self.samples, self.number, numbers
            )
        request = build_request(
            self.trainer.model,
            self.trainer.role,
            stage.models.encoder,
            self.own_prompts,
            self.rollout,
            seed=stage.seed,
            path=(stage.name, self.purpose, self.number),
            numbers=numbers,
            samples_per_prompt=self.samples,
        )
        if self.episodes is not None:
            request = self.episodes.limited(request)
        # An engine saves the weights before anything else happens. A process that has no prompts
        # must not start one.
        self.call = (engine if self.own_prompts else StageEngine()).request(request)

    def result(self) -> Samples:
        """Wait for the samples. Their source is the stage, the name that users know."""
        collectives, metrics = self.stage.collectives, dict[str, float]()
        groups = collectives.map_sharded(self.sizes, lambda own: self._sampled(), self.main_only)
        if self.rollout.async_level:
            metrics = {"async_level": self.async_level, "seconds/sampling": self.call.seconds}
        if self.episodes is not None:
            metrics |= self.episodes.metrics(collectives)
        groups = [with_responses(group, map(self._learned, group.responses)) for group in groups]
        return Samples(self.number, groups, metrics)

    def _sampled(self) -> list[Group]:
        request = self.call.request
        count = sum(map(len, request.streams))
        with self.stage.reporter.progress("rolling out", count) as done:
            completions = self.call.result(done)
            if self.episodes is not None:
                return self.episodes.play(self.call, self.own_prompts, completions)
        return attach(request, self.own_prompts, completions)

    def _learned(self, response: Response) -> Response:
        return replace(response, source=self.stage.name, async_level=self.async_level or None)


class PromptSource:
    """The prompts of a stage, and the current policy's samples.

    extra: prompts that earlier iterations drew beyond `per_iteration`. ask: starts to sample
    for an iteration. under_way: what an engine samples for the next iteration. ahead: the same once
    it is complete.
    """

    def __init__(self, trainer: Trainer, episodes: Any):
        """episodes: of the stage's environment."""
        self.stage, settings = trainer.stage, trainer.stage.settings
        loaded, self.prompts = usable_prompts(trainer, settings.prompts, "prompts", episodes)
        trainer.reference_prompts.check(self.prompts, settings.rollout.max_new_tokens)
        self.draws = make_data_sampler(self.stage, loaded, self.prompts, "prompts")
        self.per_iteration, self.extra = settings.prompts_per_iteration, 0
        samples = settings.rollout.samples_per_prompt
        self.ask = partial(SamplesUnderWay, trainer, samples=samples, episodes=episodes)
        self.under_way: SamplesUnderWay | None = None
        self.ahead: Samples | None = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        state: dict[str, Any] = {"extra": self.extra}
        if self.ahead is not None:
            groups = [*map(group_to_json, self.ahead.groups)]
            state["ahead"] = {**vars(self.ahead), "groups": groups}
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.extra = state["extra"]
        if ahead := state.get("ahead"):
            groups = []
            for prompt, group in zip(self.draw(ahead["number"]), ahead["groups"], strict=True):
                groups.append(replace(group_from_json(group), origin=prompt.origin))
            self.ahead = Samples(**{**ahead, "groups": groups})

    def draw(self, number: int, first: int = 0, count: int | None = None) -> list[Group]:
        """Prompts of an iteration, from 1: shuffled epochs over all of them, or by the weights of
        their sources.

        first: prompts of this iteration that were drawn before. count: default: `per_iteration`.
        """
        # Positions run through all iterations, so a resumed run draws the same prompts.
        start = (number - 1) * self.per_iteration + self.extra + first
        return [
            self.prompts[self.draws.at(start + place)]
            for place in range(count or self.per_iteration)
        ]

    def samples(self, number: int, first: int, count: int) -> Samples:
        """Complete samples, new ones or those that the engine wrote ahead; it begins with the next
        iteration's.
        """
        samples, self.ahead = self.ahead, None
        if samples is None:
            samples = self.ask(self.draw(number, first, count), number, first=first).result()
        settings = self.stage.settings
        if settings.rollout.async_level and number < settings.iterations:
            self.under_way = self.ask(self.draw(number + 1), number + 1, async_level=1)
        return samples

    def wait(self, *, stopped: bool) -> None:
        """Wait for samples that are under way, which a checkpoint keeps. stopped: nobody will learn
        from them.
        """
        under_way, self.under_way = self.under_way, None
        if under_way is None:
            return
        if stopped:
            under_way.call.drop()
        else:
            self.ahead = under_way.result()


# Mean differences, in nats per token, that rounding explains: in float32, and in fewer bits.
# Measured on SmolLM2: 1e-5 in float32, sampled here or by vLLM, and 0.05 in bfloat16. An engine in
# bfloat16 is 0.004 (tiny) to 0.05 from float32.
EXACT, ROUNDED = 1e-3, 0.1
# Nats per token, which no rounding explains; SmolLM2 without an adapter of 3 steps: 0.6
ANOTHER_MODEL = 0.5


def rounding_of(model: SharedModel) -> float:
    """The difference between engine and learner that rounding explains, in nats per token."""
    exact = (
        model.dtype_name == "float32"
        and model.spec.quantization == model.spec.mixed_precision == "none"
    )
    return EXACT if exact else ROUNDED


def engine_mismatch(groups: Sequence[Group], measured: Sequence[Tensor]) -> float | None:
    """How far the engine's log-probabilities are from the learner's, which are measured; None if
    it returns none.

    The mean absolute difference in nats, over all tokens of the policy.
    """
    gaps: list[Tensor] = []
    for response, learner in zip(responses_of(groups), measured, strict=True):
        # A response that was cut to fit has other tokens than its engine's numbers, and is left
        # out.
        if response.logprobs is not None and len(response.logprobs) == len(learner):
            gap = (learner.double() - torch.tensor(response.logprobs, dtype=torch.float64)).abs()
            # Tokens of others are 0 in both, and would count as perfect agreement
            if response.action_mask is not None:
                gap = gap[torch.tensor(response.action_mask)]
            gaps.append(gap)
    return float(torch.cat(gaps).mean()) if gaps else None
