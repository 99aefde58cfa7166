"""The executor of a stage: started when it is first needed, asked in a thread of its own, and ended with the stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic as now
from typing import Any

from alignkit.errors import AlignkitError
from alignkit.executor import Executor, ExecutorContext, Work
from alignkit.io.atomic import make_folder
from alignkit.plugin_errors import calling, made
from alignkit.stopping import keep_signals
from alignkit_distributed.engine_thread import EngineThread

GRACE = 5.0  # seconds for the workers to store what is under way, after a request to stop

_END = ""  # which is no reply


class StageExecutor:
    """The executor of one stage. Raises PluginError, with its plugin, class and method, for an author's mistake."""

    def __init__(self, component: Any, folder: Path, *, stage: str, say: Callable[[str], None]):
        """component: the recipe's. folder: for files of the executor."""
        self.executor: Executor
        self.executor, self._author = made(component, stage)
        self.block_rows, self.retries = int(component.options.block_rows), int(component.options.retries)
        self._folder, self._stage, self._say = folder, stage, say
        self._thread = EngineThread(math.inf, lambda: None)

    def replies(
        self, work: Work, blocks: Sequence[str], should_stop: Callable[[], None], stop: Callable[[], None]
    ) -> Iterator[str]:
        """The replies to blocks, in any order. stop: asks the workers to end, which have GRACE seconds then."""
        asked: list[float] = []

        def patient() -> None:
            try:
                should_stop()
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
        should_stop()

    def close(self) -> None:
        """End the executor. What goes wrong is only reported: the stage is done, or its error is more important."""
        if not self._thread.started:
            return
        if (wrong := self._thread.close(self.executor.close)) is not None:
            words = f"{type(wrong).__name__}: {wrong}".rstrip(": ")
            self._say(f"warning: {self._author}, in `{type(self.executor).__name__}.close`: {words}")

    def _prepare(self) -> None:
        import torch

        make_folder(self._folder)
        context = ExecutorContext(self._folder, self._stage, torch.get_num_threads(), self._say)
        with calling(self._author, "prepare", self.executor):
            self.executor.prepare(context)

    def _checked(self, reply: Any) -> str:
        if not isinstance(reply, str):
            text = f"yield the text that `work(block)` returned, not {type(reply).__name__}"
            raise self._author.error(f"{type(self.executor).__name__}.run", text)
        return reply
