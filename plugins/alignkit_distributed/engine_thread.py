"""Calls of an engine in a thread of its own, so that a call that hangs can be given up."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from time import monotonic as now
from typing import Any

POLL = 0.05  # seconds between two looks at a call
CLOSING = 30.0  # seconds for an engine to close
ENDING = 1.0  # seconds for the thread to end after that


class NoProgress(Exception):
    """A call has made no progress for too long."""


class EngineThread:
    """A thread that runs one call after another. All calls of an engine share it, because libraries may require that.

    timeout: seconds without progress.
    """

    def __init__(self, timeout: float, should_stop: Callable[[], None]):
        self.timeout, self.should_stop = timeout, should_stop
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._moved, self._count = 0.0, 0
        self.busy = False  # with a call that was given up
        self._closes = False

    @property
    def started(self) -> bool:
        """Whether anything was ever called."""
        return self._thread is not None

    def progress(self, count: int) -> None:
        """Called by the engine: `count` parts of its call are done."""
        if count > self._count and not self._closes:
            self._moved, self._count = now(), count

    def call(self, function: Callable[[], Any], done: Callable[[int], None] = lambda count: None) -> Any:
        """The function's result; raises what it raises.

        Raises NoProgress after `timeout` seconds without progress, and what `should_stop` raises.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
            self._thread.start()
        outcome: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._moved, self._count, shown = now(), 0, 0
        self.busy = True
        self._calls.put((function, outcome))
        while True:
            try:
                result, error = outcome.get(timeout=POLL)
            except queue.Empty:
                self.should_stop()
                if self._count != shown:
                    done(shown := self._count)
                if now() - self._moved > self.timeout:
                    raise NoProgress from None
                continue
            self.busy = False
            if error is not None:
                raise error
            return result

    def close(self, function: Callable[[], Any]) -> BaseException | None:
        """Run an engine's `close`, in another thread if a call was given up; returns what went wrong.

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
                thread._calls.put((_end, queue.SimpleQueue()))
            if self._thread is not None:  # a call that was given up may end now that the engine is closed
                self._thread.join(ENDING)
        return None

    @property
    def runs(self) -> bool:
        """Whether a call that was given up is still running. Python cannot end a thread."""
        return self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        while True:
            function, outcome = self._calls.get()
            if function is _end:
                return
            try:
                outcome.put((function(), None))
            except BaseException as error:  # `call` raises it
                outcome.put((None, error))


def _end() -> None:
    """Ends the thread."""
