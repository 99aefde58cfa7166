"""The prompts of rollouts, and the files of rollouts, which later iterations and stages can replay.

Also whether the sampler is the policy that learns, by the log-probabilities of both: they differ a
little if an engine rounds in another way, and much if it has other weights or reads another prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignkit.data.group import (
    Group,
    Response,
    group_from_json,
    group_to_json,
    prompts_of,
    read_groups,
    responses_of,
    with_responses,
    write_groups,
)
from alignkit.data.sources import Loaded
from alignkit.errors import DataError, RunFailed
from alignkit.io.digest import file_digest
from alignkit.models.generate import attach, build_request, generate
from alignkit.models.shared_model import SharedModel
from alignkit.training.context import StageContext
from alignkit.training.rewards import Rewards
from alignkit.training.sampler import make_sampler
from alignkit.training.table import with_scores
from alignkit.training.trainer import Trainer


def usable_prompts(
    trainer: Trainer, spec: Any, key: str, episodes: Any = None
) -> tuple[Loaded, list[Group]]:
    """The prompts of a data entry of the stage, without those that leave no room for a response;
    says how many go.
    """
    context = trainer.context
    new_tokens = context.settings.rollout.max_new_tokens
    loaded = context.load(spec)
    groups = prompts_of(loaded.groups)
    if episodes is not None:
        groups = episodes.with_tools(groups)
    trainer.encoder.count_read(groups)
    usable = [encoded.group for encoded in trainer.encoder.encode(groups, new_tokens=new_tokens)]
    if not usable:
        room = f"no room for {new_tokens} new tokens in max_length {trainer.encoder.max_length}"
        raise DataError(
            f"stage '{context.name}': no row of '{key}' is a prompt to answer, or there is {room}"
        )
    return loaded, usable


class Request:
    """The current policy's responses to some prompts, under way or complete: an engine writes them
    while something else is computed (`rollout: {ahead: 1}`), but only the first turns of episodes.
    Without an engine, samples are written when they are needed.

    number: the iteration that learns from them. metrics: once they are complete.
    """

    def __init__(
        self,
        trainer: Trainer,
        prompts: Sequence[Group],
        samples: int,
        path: tuple[str | int, ...],
        *,
        first: int = 0,
        lag: int = 0,
        episodes: Any = None,
        complete: Mapping[str, Any] | None = None,
    ):
        """samples: of each prompt. path: names the random streams, with the prompts' numbers from
        `first` on; it ends with the iteration. lag: updates between the weights that write and
        those that learn. episodes: play the stage's environment. complete: what a checkpoint has of
        them.
        """
        self.context, self.trainer, self.lag, self.episodes = (
            trainer.context,
            trainer,
            lag,
            episodes,
        )
        self.sizes, self.number = [1] * len(prompts), int(path[-1])
        self.groups: list[Group] = []
        self.metrics: dict[str, float] = {}
        if complete is not None:
            self.metrics = complete["metrics"]
            for prompt, group in zip(prompts, complete["groups"], strict=True):
                self.groups.append(replace(group_from_json(group), origin=prompt.origin))
            return
        engine = trainer.model.engine  # the first process's, which samples for all
        self.led = engine is not None
        collectives = self.context.collectives
        own = collectives.partition(self.sizes, self.led)[collectives.process]
        # Streams are named by the place in the iteration, so a sample does not depend on who draws
        # it.
        numbers = [first + index for index in own]
        self.asked = [prompts[index] for index in own]
        if episodes is not None:
            if not first:
                episodes.forget()
            self.asked = episodes.begin(self.asked, samples, self.number, numbers)
        self.request = build_request(
            trainer.model,
            trainer.role,
            trainer.context.models.encoder,
            self.asked,
            trainer.settings.rollout,
            seed=self.context.seed,
            path=path,
            numbers=numbers,
            samples_per_prompt=samples,
        )
        if episodes is not None:
            self.request = episodes.limited(self.request)
        self.under_way: Any = None
        # The weights are saved for it before anything else happens
        if engine is not None and self.asked:
            self.under_way = engine.request(self.request)

    def result(self) -> list[Group]:
        """Wait for the samples. Their source is the stage, the name that users know."""
        if not self.groups:
            groups = self.context.collectives.map_sharded(
                self.sizes, lambda own: self._sampled(), self.led
            )
            if self.trainer.settings.rollout.ahead:
                self.metrics["staleness"] = self.lag
                self.metrics["seconds/sampling"] = getattr(self.under_way, "seconds", 0.0)
            if self.episodes is not None:
                self.metrics |= self.episodes.metrics(self.context.collectives)
            self.groups = [
                with_responses(group, map(self._learned, group.responses)) for group in groups
            ]
        return self.groups

    def _sampled(self) -> list[Group]:
        count = sum(map(len, self.request.streams))
        with self.context.reporter.progress("rolling out", count) as done:
            if self.under_way is not None:
                written, follow = self.under_way.result(done), self.under_way.follow
            else:
                written, follow = generate(self.request, done=done), generate
            if self.episodes is not None:
                return self.episodes.play(self.request, self.asked, written, follow)
        return attach(self.request, self.asked, written)

    def _learned(self, response: Response) -> Response:
        return replace(response, source=self.context.name, staleness=self.lag or None)

    def drop(self) -> None:
        """Forget the samples, which nobody will learn from: the stage ends early."""
        if not self.groups and self.under_way is not None:
            self.under_way.drop()

    @property
    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps of complete samples."""
        return {
            "number": self.number,
            "metrics": self.metrics,
            "groups": [*map(group_to_json, self.groups)],
        }


class PromptSource:
    """The prompts of a stage, and the current policy's samples.

    extra: prompts that earlier iterations drew beyond `per_iteration`. request: of the next
    iteration, which an engine writes ahead.
    """

    def __init__(self, trainer: Trainer, episodes: Any):
        """episodes: of the stage's environment."""
        self.trainer, self.context, self.episodes = trainer, trainer.context, episodes
        settings = self.context.settings
        loaded, self.prompts = usable_prompts(trainer, settings.prompts, "prompts", episodes)
        trainer.reference_prompts.check(self.prompts, settings.rollout.max_new_tokens)
        self.draws = make_sampler(self.context, loaded, self.prompts, "prompts")
        self.per_iteration, self.extra = settings.prompts_per_iteration, 0
        self.request: Request | None = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        state: dict[str, Any] = {"extra": self.extra}
        if self.request is not None:
            state["ahead"] = self.request.saved
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.extra = state["extra"]
        if ahead := state.get("ahead"):
            number = ahead["number"]
            self.request = self.ask(self.draw(number), number, lag=1, complete=ahead)

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

    def ask(self, prompts: Sequence[Group], number: int, first: int = 0, **more: Any) -> Request:
        """The current policy's responses, in the place of an iteration's from the prompt `first`
        on.
        """
        path = self.context.name, "rollout", number
        samples = self.context.settings.rollout.samples_per_prompt
        return Request(
            self.trainer, prompts, samples, path, first=first, episodes=self.episodes, **more
        )

    def samples(self, number: int, first: int, count: int) -> Request:
        """Complete samples, new ones or those that the engine wrote ahead; it begins with the next
        iteration's.
        """
        request = self.request or self.ask(self.draw(number, first, count), number, first)
        request.result()
        self.request = None
        settings = self.context.settings
        if settings.rollout.ahead and number < settings.iterations:
            self.request = self.ask(self.draw(number + 1), number + 1, lag=1)
        return request

    def wait(self, *, stopped: bool) -> None:
        """Wait for samples that are under way, which a checkpoint keeps. stopped: nobody will learn
        from them.
        """
        if self.request is None:
            return
        if stopped:
            self.request.drop()
            self.request = None
        else:
            self.request.result()


class RolloutFiles:
    """The scored rollouts of a stage on disk, one file per iteration, and those of the stages in
    `replay_from`.
    """

    def __init__(self, context: StageContext, rewards: Rewards, learns_from_reward: bool):
        """learns_from_reward: responses without a score are left out."""
        self.context, self.rewards, self.learns_from_reward = context, rewards, learns_from_reward
        self.folder = context.folder / "rollouts"
        self.digests: dict[str, str] = {}  # this stage's files by name, for its checkpoints

    def write(self, iteration: int, groups: Sequence[Group]) -> None:
        file = self._file(iteration)

        def written() -> str:
            write_groups(file, groups)
            return file_digest(file)

        self.digests[file.name] = self.context.collectives.on_rank0(written)

    def state(self) -> dict[str, str]:
        """What a checkpoint keeps."""
        return self.digests

    def restore(self, digests: Mapping[str, str]) -> None:
        """Continue with the files of a checkpoint. Later ones are removed: they will be written
        again.

        Raises RunFailed if a file has changed since the checkpoint.
        """
        self.digests = dict(digests)
        # People may have deleted others
        for file in filter(Path.is_file, map(self.folder.joinpath, digests)):
            self._check(file)

        def remove_later() -> None:
            for path in self.folder.glob("*.jsonl"):
                if path.name not in digests:
                    path.unlink()

        self.context.collectives.on_rank0(remove_later)

    def before(self, iteration: int) -> list[list[Group]]:
        """Scored rollouts of the stages in `replay_from`, then of this stage's earlier iterations.

        None, which is reported, if their scores cannot be compared with the current ones. Raises
        RunFailed if a file has changed since this stage wrote it.
        """
        if not self.rewards.comparable:
            name = self.rewards.name
            self.context.say(
                f"earlier samples are not replayed: scores of '{name}' change between iterations"
            )
            return []
        for name in self.digests:
            self._check(self.folder / name)
        everything = [*self._replayed, *map(self.seen, range(1, iteration))]
        return (
            [with_scores(groups) for groups in everything]
            if self.learns_from_reward
            else everything
        )

    def seen(self, iteration: int) -> list[Group]:
        """What an iteration sampled; empty if people deleted the file."""
        file = self._file(iteration)
        return read_groups(file) if file.is_file() else []

    def _check(self, file: Path) -> None:
        if not file.is_file() or file_digest(file) != self.digests[file.name]:
            raise RunFailed(
                f"{file} has changed since stage '{self.context.name}' wrote it\n"
                f"help: delete {self.context.folder.resolve()}, and the stage starts over"
            )

    def _file(self, iteration: int) -> Path:
        return self.folder / f"{iteration:04d}.jsonl"

    @cached_property
    def _replayed(self) -> list[list[Group]]:
        """Rollouts of other stages, scored again by this stage's reward, whose scale may differ
        from theirs.
        """
        penalty = self.context.settings.rollout.missing_eos_penalty
        replayed: list[list[Group]] = []
        for stage in self.context.settings.replay_from:
            paths = sorted(
                (self.context.folder.parent / stage / "rollouts").glob("*.jsonl"),
                key=lambda path: int(path.stem),
            )
            if not paths:
                raise RunFailed(
                    f"stage '{self.context.name}': replay_from: stage '{stage}' has no rollouts"
                )
            for groups in map(read_groups, paths):
                replayed.append(self.rewards.score(groups, penalty))
        return replayed


# Mean differences, in nats per token, that rounding explains: in float32, and in fewer bits.
# Measured on SmolLM2: 1e-5 in float32, sampled here or by vLLM, and 0.05 in bfloat16. A sampler in
# bfloat16 is 0.004 (tiny) to 0.05 from float32.
EXACT, ROUNDED = 1e-3, 0.1
# Nats per token, which no rounding explains; SmolLM2 without an adapter of 3 steps: 0.6
ANOTHER_MODEL = 0.5


def rounding_of(model: SharedModel) -> float:
    """The difference between sampler and learner that rounding explains, in nats per token."""
    exact = (
        model.dtype_name == "float32"
        and model.spec.quantization == model.spec.mixed_precision == "none"
    )
    return EXACT if exact else ROUNDED


def sampler_gap(groups: Sequence[Group], measured: Sequence[Tensor]) -> float | None:
    """How far the sampler's log-probabilities are from the learner's, which are measured; None if
    it tells none.

    The mean absolute difference in nats, over all tokens of the policy.
    """
    gaps: list[Tensor] = []
    for response, learner in zip(responses_of(groups), measured, strict=True):
        # A response that was cut to fit has other tokens than its sampler's numbers, and is left
        # out.
        if response.logprobs is not None and len(response.logprobs) == len(learner):
            gap = (learner.double() - torch.tensor(response.logprobs, dtype=torch.float64)).abs()
            # Tokens of others are 0 in both, and would count as perfect agreement
            if response.written is not None:
                gap = gap[torch.tensor(response.written)]
            gaps.append(gap)
    return float(torch.cat(gaps).mean()) if gaps else None
