"""A request to end this process soon. Signals make it, and long work asks for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from alignkit.errors import AlignkitError

# SIGHUP: the terminal was closed. SIGUSR1: a batch system's warning before its time limit.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
_reasons: list[str] = []


class Stopped(AlignkitError):
    """The run was asked to stop; the same command resumes it."""

    exit_code = 75


class StageWaits(Stopped):
    """A stage waits for people, who label its items; the same command continues. Other stages run meanwhile.

    missing: labels. stage, store: who waits, and where the labels go.
    """

    prefix = ""

    def __init__(self, message: str, *, missing: int, stage: str, store: Path):
        super().__init__(message)
        self.missing, self.stage, self.store = missing, stage, store


def request_stop(reason: str) -> None:
    """Stop at the next opportunity; the run can be resumed."""
    _reasons.append(reason)


def should_stop() -> None:
    """Raise Stopped if a stop was requested."""
    if _reasons:
        raise Stopped(f"stopped: {_reasons[0]}")


@contextmanager
def stoppable() -> Iterator[None]:
    """Let signals request a stop; a second signal stops at once. Only the main thread receives signals."""
    if signal.getsignal(SIGNALS[0]) is _signalled:  # within a block that does this already
        yield
        return
    _reasons.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        with handling(SIGNALS, _signalled):
            yield
    finally:
        _reasons.clear()


@contextmanager
def handling(signals: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let a function receive signals; afterward, whoever received them before does."""
    previous = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)


def _signalled(number: int, _frame: FrameType | None) -> None:
    impatient = bool(_reasons)
    request_stop(signal.Signals(number).name)
    if impatient:
        should_stop()
