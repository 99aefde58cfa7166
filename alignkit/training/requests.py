"""Samples that a stage asks for: an engine writes them while something else is computed (`rollout: {ahead: 1}`).

Only the engine's own work overlaps. Environments and tokenizers stay in the main thread, which takes up between its
steps what the engine has done (`poll`). Without an engine, samples are written when they are needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from alignkit.data.group import Group, Response, group_from_json, group_to_json
from alignkit.errors import error_context
from alignkit.models.generate import Generation, attach, build_request, generate
from alignkit.training.context import StageContext
from alignkit.training.stage import TrainerState


class Request:
    """The current policy's responses to some prompts, asked for, under way, or complete.

    samples: of each prompt. path: names the random streams, with the prompts' numbers from `first` on; it ends with
    the iteration. lag: updates between the weights that write and those that learn. episodes: play the stage's
    environment. complete: the state of a request that a checkpoint has the samples of. metrics: once they are
    complete.
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
        episodes: Any = None,
        complete: Mapping[str, Any] | None = None,
    ):
        self.context, self.state, self.samples, self.path = context, state, samples, path
        self.sampling = state.settings.rollout
        self.prompts, self.first, self.lag, self.episodes = prompts, first, lag, episodes
        self.engine = state.model.engine
        self._asked_for: Generation | None = None
        self._under_way: Any = None  # what the engine returned
        read = map(group_from_json, complete["groups"] if complete else ())
        self.groups = [replace(group, origin=prompt.origin) for group, prompt in zip(read, prompts, strict=False)]
        self.metrics: dict[str, float] = complete["metrics"] if complete else {}
        # An engine is the first process's: it samples for all.
        self._own = context.collectives.partition([1] * len(prompts), self.engine is not None)[
            context.collectives.process
        ]
        self._numbers = [first + index for index in self._own]
        self._asked = [prompts[index] for index in self._own]
        if self.engine is not None and self._own and not self.groups:
            with self._context():
                self._begin()

    @property
    def number(self) -> int:
        """The iteration that learns from them."""
        return int(self.path[-1])

    def _context(self) -> AbstractContextManager[Any]:
        return error_context(f"for the samples of iteration {self.number}") if self.lag else nullcontext()

    def _begin(self) -> None:
        """Let the engine sample from the current weights, which are saved for it before anything else happens."""
        self._asked_for = self._request()
        self._under_way = self.engine.request(self._asked_for)

    def _request(self) -> Generation:
        partner = None
        if self.episodes is not None:
            if not self.first:
                self.episodes.forget()
            self._asked = self.episodes.begin(self._asked, self.samples, self.number, self._numbers)
            partner = self.episodes.partner
        return build_request(
            self.state.model,
            self.state.roles.trained,
            self.state.models.encoder,
            self._asked,
            self.sampling,
            seed=self.context.seed,
            path=self.path,
            # Streams are named by the place in the iteration, so a sample does not depend on who draws it.
            numbers=self._numbers,
            samples_per_prompt=self.samples,
            partner=partner,
        )

    def poll(self) -> None:
        """Answer turns that have ended, and let the engine write the next ones. Waits for nothing."""
        if self._under_way is not None:
            with self._context():
                self._under_way.poll()

    def result(self) -> list[Group]:
        """Wait for the samples. Their source is the stage, the name that users know."""
        if not self.groups:
            with self._context():
                led = self.engine is not None
                groups = self.context.collectives.map_sharded([1] * len(self.prompts), lambda own: self._sampled(), led)
            ages = {"staleness": self.lag, "seconds/sampling": getattr(self._under_way, "seconds", 0.0)}
            self.metrics = ages if self.state.settings.rollout.ahead else {}
            if self.episodes is not None:
                self.metrics |= self.episodes.metrics(self.context.collectives)
            self.groups = [replace(g, responses=tuple(map(self._named, g.responses))) for g in groups]
            self._under_way = None
        return self.groups

    def _sampled(self) -> list[Group]:
        with self.context.reporter.progress("rolling out", len(self._own) * self.samples) as done:
            request = self._asked_for or self._request()
            written = generate(request, done=done) if self._under_way is None else self._under_way.result(done)
        groups = attach(request, self._asked, written)
        return groups if self.episodes is None else self.episodes.finish(groups)

    def _named(self, response: Response) -> Response:
        """With its source, and its age, to which an engine may have added."""
        age = self.lag + (response.staleness or 0)
        return replace(response, source=self.context.name, staleness=age or None)

    def drop(self) -> None:
        """Forget the samples, which nobody will learn from: the stage ends early."""
        if self._under_way is not None:
            self._under_way.drop()

    @property
    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps of complete samples."""
        return {"number": self.number, "metrics": self.metrics, "groups": [*map(group_to_json, self.groups)]}
