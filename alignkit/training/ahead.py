"""Samples of the next iteration, written by an engine while this one is scored and learned (`rollout: {ahead: 1}`).

They are from the weights before this iteration's update, so they are one update old when they are learned from: the
next samples are asked for only when these are here. Only the engine's own work overlaps. Environments and tokenizers
stay in the main thread, which takes up between its steps what the engine has done (`poll`).

Before an iteration ends, the next samples are waited for. A checkpoint keeps them, so a run that continues after it
needs no older weights. Whatever else was under way is sampled again: by the same weights, with its own seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignkit.data.group import Group, Response, group_from_json, group_to_json
from alignkit.errors import error_context
from alignkit.models.generate import Sampling, answered, questions
from alignkit.training.context import StageContext
from alignkit.training.episodes import Episodes
from alignkit.training.stage import StageWork


class Ahead:
    """The samples of one iteration, under way or complete.

    number: the iteration; 0 if there are none. staleness: updates between the weights that write them and those that
    learn from them. metrics: of complete samples.
    """

    def __init__(self, context: StageContext, work: StageWork, sampling: Sampling, episodes: Episodes | None):
        self.context, self.work, self.sampling, self.episodes = context, work, sampling, episodes
        self.number = self.staleness = 0
        self.metrics: dict[str, float] = {}
        self._asked: list[Group] = []  # of this process
        self._begun: Any = None  # what `StageEngine.begin` returned, until the samples are complete
        self._prompts = 0
        self._groups: list[Group] = []

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue with the samples of a checkpoint."""
        if state:
            self.number, self.staleness, self.metrics = state["number"], state["staleness"], state["metrics"]
            self._groups = [group_from_json(line) for line in state["groups"]]

    @property
    def checkpoint(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        groups = [group_to_json(group) for group in self._groups]
        state = {"number": self.number, "staleness": self.staleness, "metrics": self.metrics, "groups": groups}
        return {"ahead": state} if self.number else {}

    def begin(self, number: int, prompts: Sequence[Group], staleness: int) -> None:
        """Let the engine sample from the current weights, which are saved for it before anything else happens."""
        self.number, self.staleness, self._prompts = number, staleness, len(prompts)
        # An engine is the first process's: it samples for all.
        own = self.context.reducer.shares([1] * len(prompts), led=True)[self.context.reducer.process]
        if not own:
            return
        asked, encoder, partner = [prompts[index] for index in own], self.work.models.encoder, None
        with error_context(f"for the samples of iteration {number}"):
            if self.episodes is not None:
                self.episodes.forget()
                asked = self.episodes.begin(asked, self.sampling.samples_per_prompt, (number, own))
                partner = self.episodes.partner
            place = self.context.name, "rollout", number
            ids, streams, labels = questions(encoder, asked, self.sampling, self.context.seed, place, own)
            model, role = self.work.model, self.work.roles.trained
            self._begun = model.engine.begin(model, role, encoder, ids, streams, self.sampling, labels, partner)
        self._asked = asked

    def poll(self) -> None:
        """Answer turns that have ended, and let the engine write the next ones. Waits for nothing."""
        if self._begun is not None:
            with error_context(f"for the samples of iteration {self.number}"):
                self._begun.poll()

    def finish(self) -> None:
        """Wait until the samples are complete."""
        if not self.number or self._groups:
            return
        count = len(self._asked) * self.sampling.samples_per_prompt
        with (
            error_context(f"for the samples of iteration {self.number}"),
            self.context.reporter.progress("rolling out", count) as done,
        ):
            groups = self.context.reducer.deal([1] * self._prompts, lambda own: self._written(done), led=True)
        self._groups = [replace(g, responses=tuple(map(self._named, g.responses))) for g in groups]
        seconds = self._begun.seconds if self._begun is not None else 0.0
        self.metrics = {"staleness": self.staleness, "seconds/sampling": seconds}
        self.metrics |= self.episodes.metrics(self.context.reducer) if self.episodes is not None else {}
        self._begun = None

    def _named(self, response: Response) -> Response:
        """With its source, which is the name that users know, and its age, to which an engine may have added."""
        return replace(response, source=self.context.name, staleness=self.staleness + (response.staleness or 0))

    def _written(self, done: Callable[[int], None]) -> list[Group]:
        groups = answered(self.work.models.encoder, self._asked, self._begun.result(done), self.work.roles.trained)
        return groups if self.episodes is None else self.episodes.finish(groups)

    def take(self, prompts: Sequence[Group]) -> list[Group]:
        """Wait for the samples, and make room for the next ones.

        prompts: theirs, since a checkpoint does not keep where they were read.
        """
        self.finish()
        groups, self.number, self._groups = self._groups, 0, []
        return [replace(group, origin=prompt.origin) for group, prompt in zip(groups, prompts, strict=True)]

    def drop(self) -> None:
        """Forget the samples, which nobody will learn from: the stage ends early."""
        if self._begun is not None:
            self._begun.drop()
        self.number, self._begun, self._groups = 0, None, []
