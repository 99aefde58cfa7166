"""The rows of a step that an executor carries out: dealt in blocks, wherever its workers are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic as now
from typing import Any

from alignkit.data.group import Group, group_to_json
from alignkit.errors import AlignkitError
from alignkit.executor import Executor, ExecutorContext, Work
from alignkit.io.atomic import make_folder
from alignkit.plugin_errors import calling, made
from alignkit.recipe.schema import RewardSpec, Stage, specs
from alignkit.runs.durable_map import CHUNK
from alignkit.runs.step_context import SCORED, StepRows
from alignkit.stopping import keep_signals
from alignkit.training.scoring import Scorer
from alignkit_distributed.engine_thread import EngineThread
from alignkit_distributed.row_blocks import map_in_blocks
from alignkit_distributed.row_work import stage_work

GRACE = 5.0  # seconds for the workers to store what is under way, after a request to stop

_END = ""  # which is no reply


class DealtRows(StepRows):
    """The rows of a step whose stage names an executor. run: a `Run`. folder: the stage's.

    The executor is started when it is first needed, and asked in a thread of its own. Raises PluginError, with its
    plugin, class and method, for an author's mistake.
    """

    def __init__(self, run: Any, stage: Stage, folder: Path):
        super().__init__(run, stage, folder)
        component: Any = stage.executor
        self.options = component.options
        self.executor: Executor
        self.executor, self._author = made(component, stage.name)
        self._thread = EngineThread(math.inf, lambda: None)

    def map(self, name: str, rows: Sequence[Any], function: Callable[..., Any]) -> list[Any]:
        if name not in self.stage.component.registration.implementation.maps:
            return super().map(name, rows, function)
        with self.run.reporter.progress(name, len(rows)) as done:
            return self._in_blocks(name, rows, done, CHUNK)

    def scores(self, leaf: Scorer, groups: Sequence[Group]) -> list[float | None]:
        if (place := _place_of(leaf.spec, self.stage)) is None:
            return super().scores(leaf, groups)
        with self.run.reporter.progress(f"scoring with {leaf.name}", len(groups)) as done:
            found = self._in_blocks(f"scores-{place}", _Lines(groups), done, SCORED, (place, leaf.name))
        return [score for scores in found for score in scores]

    def close(self) -> None:
        """End the executor. What goes wrong is only reported: the stage is done, or its error is more important."""
        if not self._thread.started:
            return
        if (wrong := self._thread.close(self.executor.close)) is not None:
            words = f"{type(wrong).__name__}: {wrong}".rstrip(": ")
            self.run.reporter.say(f"warning: {self._author}, in `{type(self.executor).__name__}.close`: {words}")

    def _in_blocks(
        self,
        name: str,
        rows: Sequence[Any],
        done: Callable[[int], None],
        size: int,
        leaf: tuple[int, str] | None = None,
    ) -> list[Any]:
        work = stage_work(self.run, self.stage, self.folder, name, size, leaf)
        return map_in_blocks(
            self.file(name),
            rows,
            lambda blocks, stop: self._replies(work, blocks, stop),
            self.run.should_stop,
            done,
            size=size,
            block_rows=self.options.block_rows,
            retries=self.options.retries,
        )

    def _replies(self, work: Work, blocks: Sequence[str], stop: Callable[[], None]) -> Iterator[str]:
        """The replies to blocks, in any order. stop: asks the workers to end, which have GRACE seconds then."""
        asked: list[float] = []

        def patient() -> None:
            try:
                self.run.should_stop()
            except AlignkitError:
                if not asked:
                    asked.append(now())
                    stop()
                if now() - asked[0] > GRACE:
                    raise

        self._thread.should_stop = patient
        done = False
        try:
            if not self._thread.started:
                self._thread.call(self._prepare)
                keep_signals()
            found: Iterator[Any] = iter(())

            def begin() -> None:
                nonlocal found
                with calling(self._author, "run", self.executor):
                    found = iter(self.executor.run(work, blocks))

            def following() -> str:
                with calling(self._author, "run", self.executor):
                    return self._checked(next(found, _END))

            self._thread.call(begin)
            while reply := self._thread.call(following):
                yield reply
            done = True
        finally:
            if not done:
                stop()
        self.run.should_stop()

    def _prepare(self) -> None:
        import torch

        make_folder(cache := self.run.cache() / "executor")
        context = ExecutorContext(cache, self.stage.name, torch.get_num_threads(), self.run.reporter.say)
        with calling(self._author, "prepare", self.executor):
            self.executor.prepare(context)

    def _checked(self, reply: Any) -> str:
        if not isinstance(reply, str):
            text = f"yield the text that `work(block)` returned, not {type(reply).__name__}"
            raise self._author.error(f"{type(self.executor).__name__}.run", text)
        return reply


class _Lines(Sequence[Any]):
    """Groups as JSON, made when they are asked for, so that not all of them are in memory twice."""

    def __init__(self, groups: Sequence[Group]):
        self._groups = groups

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, place: Any) -> Any:
        found = self._groups[place]
        return [group_to_json(group) for group in found] if isinstance(place, slice) else group_to_json(found)


def _place_of(spec: RewardSpec, stage: Stage) -> int | None:
    """The place of a reward among all that a step's options name, those within others included; None if it is none."""
    every = specs(stage.component.options, RewardSpec)
    return next((place for place, each in enumerate(every) if each is spec), None)
