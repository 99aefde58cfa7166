"""A thread of each process that finds out when another one has ended or is silent, or when its own hangs."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from alignkit import stopping
from alignkit.runs.world import World
from alignkit_distributed.kv_store import Board, Failure

BEAT = 1.0  # seconds between two signs of life
GRACE = 15.0  # seconds that this process has to end by itself, once another one has failed
LEAST_WORK = 0.05  # seconds of a processor, during `patience`, that are a sign of life
HUNG = 70  # exit code


class Watch(threading.Thread):
    """patience: seconds without a sign of life. end: prints a message and ends this process with an exit code.

    A process that computes, writes files, or asks whether it should stop is alive. One that waits for the others, or
    whose work is not shared, is not expected to be.
    """

    def __init__(self, board: Board, world: World, patience: float, end: Callable[[str, int], None]):
        super().__init__(name="watch", daemon=True)
        self.board, self.world, self.patience, self.end = board, world, patience, end
        self.sharing = False  # whether the others wait for what this process computes
        self.waiting = False  # whether this process waits for the others
        self._over = threading.Event()
        self._main = threading.main_thread().ident
        now = time.monotonic()
        others = [process for process in range(world.processes) if process != world.process]
        self._beats = {process: (None, now) for process in others}
        self._life: tuple[tuple[tuple[int, int], float], float] = (((0, 0), 0.0), now)  # signs, work; when they changed
        self._failed_at: float | None = None
        self._process = psutil.Process()

    def stop(self) -> None:
        """Watch no longer."""
        self._over.set()

    def run(self) -> None:
        beat = 0
        while not self._over.wait(BEAT):
            beat += 1
            try:
                self.board.write(f"beat/{self.world.process}", beat)
                self._look_at_failures()
                self._look_at_others()
            except (RuntimeError, OSError) as error:
                if not self._over.is_set():
                    self.end(f"the launcher, or process 0, has ended ({str(error).splitlines()[0]})", 1)
                return
            self._look_at_this()

    def _look_at_failures(self) -> None:
        failure = self.board.failure()
        if failure is None or failure.process == self.world.process:
            return
        text = f"process {failure.process} failed: {failure.first_line}"
        if self._failed_at is None:
            self._failed_at = time.monotonic()
            stopping.request_stop(text)
        elif time.monotonic() - self._failed_at > GRACE:
            self.end(text, failure.exit_code)

    def _look_at_others(self) -> None:
        now = time.monotonic()
        for process, (last, since) in self._beats.items():
            beat = self.board.read(f"beat/{process}")
            if beat != last:
                self._beats[process] = (beat, now)
            elif now - since > self.patience:
                text = f"process {process} has given no sign of life for {self.patience:g} seconds"
                self.board.fail(Failure(process, text, HUNG))
                self.end(text, HUNG)

    def _look_at_this(self) -> None:
        """End this process if it does nothing while the others wait for it."""
        now, work = time.monotonic(), time.process_time() - time.thread_time()
        signs = (stopping.asked(), self._written())
        (before, worked), since = self._life
        expected = self.sharing and not self.waiting
        if not expected or signs != before or work - worked > LEAST_WORK:
            self._life = ((signs, work), now)
        elif now - since > self.patience:
            place = self._place()
            text = f"nothing has moved for {self.patience:g} seconds{place}"
            self.board.fail(Failure(self.world.process, text, HUNG))
            self.end(f"{text}; if this may take so long, set 'launcher: {{patience: SECONDS}}'", HUNG)

    def _written(self) -> int:
        """Bytes that this process has read and written; a slow disk is no hang."""
        try:
            counters = self._process.io_counters()
        except (psutil.Error, OSError, AttributeError):
            return 0
        return int(counters.write_bytes + counters.read_bytes)

    def _place(self) -> str:
        """` in line 12 of reward.py (score)`, where the main thread is."""
        frame = sys._current_frames().get(self._main or 0)
        if frame is None:
            return ""
        code = frame.f_code
        return f" in line {frame.f_lineno} of {Path(code.co_filename).name} ({code.co_name})"
