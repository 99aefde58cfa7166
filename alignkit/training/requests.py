"""Samples that a stage asks for: an engine writes them while something else is computed (`rollout:
{ahead: 1}`).

Only the first turns of episodes overlap. Environments and tokenizers stay in the main thread.
Without an engine, samples are written when they are needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignkit.data.group import Group, Response, group_from_json, group_to_json
from alignkit.models.generate import attach, build_request, generate
from alignkit.training.trainer import Trainer


class Request:
    """The current policy's responses to some prompts, under way or complete.

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
                replace(group, responses=tuple(map(self._learned, group.responses)))
                for group in groups
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
