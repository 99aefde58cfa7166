"""Samples that a stage asks for: an engine writes them while something else is computed (`rollout: {ahead: 1}`).

Only the first call of an engine overlaps. Environments and tokenizers stay in the main thread. Without an engine,
samples are written when they are needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from alignkit.data.group import Group, Response, group_from_json, group_to_json
from alignkit.errors import error_context
from alignkit.models.generate import answered, questions, sample
from alignkit.models.shared_model import SharedModel
from alignkit.tokens.encoder import Encoder
from alignkit.training.context import StageContext
from alignkit.training.environments import Episodes
from alignkit.training.stage import TrainerState


class Request:
    """The current policy's responses to some prompts, under way or complete.

    number: the iteration that learns from them. metrics: once they are complete.
    """

    def __init__(
        self,
        context: StageContext,
        state: TrainerState,
        prompts: Sequence[Group],
        samples: int,
        path: tuple[str | int, ...],
        *,
        first: int = 0,
        lag: int = 0,
        episodes: Episodes | None = None,
        complete: Mapping[str, Any] | None = None,
    ):
        """samples: of each prompt. path: names the random streams, with the prompts' numbers from `first` on; it ends
        with the iteration. lag: updates between the weights that write and those that learn. episodes: play the stage's
        environment. complete: what a checkpoint has of them.
        """
        self.context, self.state, self.lag, self.episodes = context, state, lag, episodes
        self.samples, self.sizes, self.number = samples, [1] * len(prompts), int(path[-1])
        self.groups: list[Group] = []
        self.metrics: dict[str, float] = {}
        if complete is not None:
            self.metrics = complete["metrics"]
            for prompt, group in zip(prompts, complete["groups"], strict=True):
                self.groups.append(replace(group_from_json(group), origin=prompt.origin))
            return
        self.engine = state.model.engine  # the first process's, which samples for all
        own = context.collectives.partition(self.sizes, self.engine is not None)[context.collectives.process]
        # Streams are named by the place in the iteration, so a sample does not depend on who draws it.
        numbers = [first + index for index in own]
        self.named: dict[str, Any] = {
            "seed": context.seed,
            "place": path,
            "numbers": numbers,
            "samples_per_prompt": samples,
        }
        self.asked, self.partner = [prompts[index] for index in own], None
        self._under_way: Any = None
        with self._named_error():
            if episodes is not None:
                if not first:
                    episodes.forget()
                self.asked, self.partner = episodes.begin(self.asked, samples, self.number, numbers), episodes.partner
            if self.engine is not None and self.asked:  # its weights are saved before anything else happens
                ids, streams, labels = questions(state.models.encoder, self.asked, **self.named)
                more = {"labels": labels, "partner": self.partner}
                self._under_way = self.engine.request(*self._policy, ids, streams, state.settings.rollout, **more)

    @property
    def _policy(self) -> tuple[SharedModel, str, Encoder]:
        return self.state.model, self.state.roles.trained, self.state.models.encoder

    def _named_error(self) -> AbstractContextManager[Any]:
        return error_context(f"for the samples of iteration {self.number}") if self.lag else nullcontext()

    def result(self) -> list[Group]:
        """Wait for the samples. Their source is the stage, the name that users know."""
        if not self.groups:
            led = self.engine is not None
            with self._named_error():
                groups = self.context.collectives.map_sharded(self.sizes, lambda own: self._sampled(), led)
            if self.state.settings.rollout.ahead:
                self.metrics["staleness"] = self.lag
                self.metrics["seconds/sampling"] = getattr(self._under_way, "seconds", 0.0)
            if self.episodes is not None:
                self.metrics |= self.episodes.metrics(self.context.collectives)
            self.groups = [replace(group, responses=tuple(map(self._learned, group.responses))) for group in groups]
            self._under_way = None
        return self.groups

    def _sampled(self) -> list[Group]:
        model, role, encoder = self._policy
        with self.context.reporter.progress("rolling out", len(self.asked) * self.samples) as done:
            if self._under_way is not None:
                groups = answered(encoder, self.asked, self._under_way.result(done), role)
            else:
                more = {"done": done, "partner": self.partner, **self.named}
                groups = sample(model, role, encoder, self.asked, self.state.settings.rollout, **more)
        return groups if self.episodes is None else self.episodes.finish(groups)

    def _learned(self, response: Response) -> Response:
        return replace(response, source=self.context.name, staleness=self.lag or None)

    def drop(self) -> None:
        """Forget the samples, which nobody will learn from: the stage ends early."""
        if not self.groups and self._under_way is not None:
            self._under_way.drop()

    @property
    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps of complete samples."""
        return {"number": self.number, "metrics": self.metrics, "groups": [*map(group_to_json, self.groups)]}
