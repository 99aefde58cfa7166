"""Samples that an engine has begun to write, in calls that run while the caller does something else."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, suppress
from typing import Any

from alignkit.models.generate import Continuation
from alignkit_distributed.engine_thread import Call, EngineThread

# Yields one call of an engine after another, and is sent what each returned; returns the samples of each prompt.
Steps = Generator[Callable[[], Any], Any, list[list[Continuation]]]


class Begun:
    """Samples under way. Only the calls run in the engine's thread; all else does when somebody asks here.

    seconds: that the engine has worked on them.
    """

    def __init__(
        self,
        asking: Callable[[str], AbstractContextManager[None]],
        thread: EngineThread,
        steps: Callable[[Callable[[int], None]], Steps],
        counts: bool,
        rest: Callable[[], None],
    ):
        """asking: reports a method's errors. steps: given what counts complete responses; counts: the engine does.

        rest: called when the samples are complete.
        """
        self._asking, self._thread, self._counts, self._rest = asking, thread, counts, rest
        self._done: Callable[[int], None] = lambda responses: None
        self._steps = steps(lambda responses: self._done(responses))
        self._call: Call | None = None
        self._written: list[list[Continuation]] = []
        self.seconds = 0.0
        self._ask(None)

    @property
    def over(self) -> bool:
        """Whether nothing is under way any more."""
        return self._call is None

    def _ask(self, answer: Any) -> None:
        """Begin the call that follows this answer, if any."""
        self._call = None
        try:
            function = self._steps.send(answer)
        except StopIteration as end:
            self._written = end.value
            return
        with self._asking("sample"):
            self._call = self._thread.begin(function)

    def _take(self) -> None:
        """Wait for the call that is running, and begin the call that follows."""
        call = self._call
        assert call is not None
        with self._asking("sample"):
            answer = self._thread.wait(call, self._done if self._counts else lambda count: None)
        self.seconds += call.seconds
        self._ask(answer)

    def poll(self) -> None:
        """Take up what the engine has done, without waiting for it."""
        while self._call is not None and self._call.over.is_set():
            self._take()

    def result(self, done: Callable[[int], None] = lambda responses: None) -> list[list[Continuation]]:
        """Wait for the samples. done: is given the number of complete responses."""
        self._done = done
        while self._call is not None:
            self._take()
        self._rest()
        return self._written

    def drop(self) -> None:
        """Wait for the call that is running, whose samples nobody wants any more. It may fail."""
        self._steps.close()
        with suppress(Exception):
            if self._call is not None:
                self._thread.wait(self._call)
        self._call = None
