"""Tasks of the thread that has the models, one after the other."""

from __future__ import annotations

import queue
from collections.abc import Callable

from alignkit_apps.policies.work import POLL, Busy

MOST_WAITING = 16  # tasks


class Line:
    """Tasks that wait for the model's thread."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[Callable[[], None]] = queue.Queue(MOST_WAITING)
        self.stopping = False

    def submit(self, task: Callable[[], None]) -> None:
        """Let a task wait for its turn, from any thread. Raises Busy if too many wait."""
        try:
            self._waiting.put_nowait(task)
        except queue.Full:
            raise Busy from None

    def stop(self) -> None:
        """End the loop, and the answers that are being written, from any thread."""
        self.stopping = True

    def run(self, poll: Callable[[], None] = lambda: None) -> None:
        """Do tasks until `stop` is called. poll: called now and then; what it raises ends the loop."""
        try:
            while not self.stopping:
                poll()
                try:
                    task = self._waiting.get(timeout=POLL)
                except queue.Empty:
                    continue
                task()
        finally:
            self.stopping = True
