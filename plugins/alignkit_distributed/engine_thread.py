"""Calls of an engine in a thread of its own, so that a call that hangs can be given up."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic as now
from typing import Any

POLL = 0.05  # seconds between two looks at a call
CLOSING = 30.0  # seconds for an engine to close
ENDING = 1.0  # seconds for the thread to end after that


class NoProgress(Exception):
    """A call has made no progress for too long."""


@dataclass(eq=False)
class Call:
    """What the thread was asked to run. result, error: what came of it, once it is `over`. seconds: that it took."""

    function: Callable[[], Any]
    over: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    error: BaseException | None = None
    seconds: float = 0.0


class EngineThread:
    """A thread that runs one call after another. All calls of an engine share it, because libraries may require that.

    timeout: seconds without progress. given_up: whether somebody stopped waiting for a call.
    """

    def __init__(self, timeout: float, should_stop: Callable[[], None]):
        self.timeout, self.should_stop = timeout, should_stop
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()  # None ends the thread
        self._thread: threading.Thread | None = None
        self._last: Call | None = None
        self._moved, self._count = 0.0, 0
        self.given_up = False
        self._closes = False

    @property
    def started(self) -> bool:
        """Whether anything was ever called."""
        return self._thread is not None

    @property
    def busy(self) -> bool:
        """Whether a call is running."""
        return self._last is not None and not self._last.over.is_set()

    def progress(self, count: int) -> None:
        """Called by the engine: `count` parts of its call are done."""
        if count > self._count and not self._closes:
            self._moved, self._count = now(), count

    def call(self, function: Callable[[], Any], done: Callable[[int], None] = lambda count: None) -> Any:
        """The function's result; raises what it raises, and what `wait` does."""
        return self.wait(self.begin(function), done)

    def begin(self, function: Callable[[], Any]) -> Call:
        """Let the thread run a function while the caller does something else; `wait` has its result.

        A call that is running is waited for first, and raises here what `wait` does of its own.
        """
        if self._last is not None:
            self._until_over(self._last, lambda count: None)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
            self._thread.start()
        self._moved, self._count = now(), 0
        self._last = call = Call(function)
        self._calls.put(call)
        return call

    def wait(self, call: Call, done: Callable[[int], None] = lambda count: None) -> Any:
        """The call's result; raises what it raises.

        Raises NoProgress after `timeout` seconds without progress, and what `should_stop` raises.
        """
        self._until_over(call, done)
        if call.error is not None:
            raise call.error
        return call.result

    def _until_over(self, call: Call, done: Callable[[int], None]) -> None:
        shown = 0
        try:
            while not call.over.wait(POLL):
                self.should_stop()
                if self._count != shown:
                    done(shown := self._count)
                if now() - self._moved > self.timeout:
                    raise NoProgress
        except BaseException:
            self.given_up = True
            raise

    def close(self, function: Callable[[], Any]) -> BaseException | None:
        """Run an engine's `close`, in another thread if a call is running; returns what went wrong.

        Takes at most CLOSING and ENDING seconds.
        """
        closing = self if not self.busy else EngineThread(CLOSING, lambda: None)
        closing.timeout, closing.should_stop, self._closes = CLOSING, lambda: None, True
        try:
            closing.call(function)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return error
        finally:
            for thread in {self, closing}:
                thread._calls.put(None)
            if self._thread is not None:  # a call that is running may end now that the engine is closed
                self._thread.join(ENDING)
        return None

    @property
    def runs(self) -> bool:
        """Whether a call is still running after `close`. Python cannot end a thread."""
        return self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            began = now()
            try:
                call.result = call.function()
            except BaseException as error:  # `wait` raises it
                call.error = error
            call.seconds = now() - began
            call.over.set()
