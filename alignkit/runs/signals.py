"""Requests to stop a run, which signals or code make, and which a run follows where it can resume."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from alignkit.errors import Stopped

# SIGHUP: the terminal was closed. SIGUSR1: a batch system's warning before its time limit.
SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
_reasons: list[str] = []


def request_stop(reason: str) -> None:
    """Stop at the next opportunity; the run can be resumed."""
    _reasons.append(reason)


def should_stop() -> None:
    """Raise Stopped if a stop was requested."""
    if _reasons:
        raise Stopped(f"stopped: {_reasons[0]}")


@contextmanager
def stoppable() -> Iterator[None]:
    """Let signals request a stop; a second signal stops at once. Only the main thread receives
    signals.
    """
    if signal.getsignal(SIGNALS[0]) is _signalled:  # within a block that does this already
        yield
        return
    received = SIGNALS if threading.current_thread() is threading.main_thread() else []
    try:
        with handling(received, _signalled):
            yield
    finally:
        _reasons.clear()


@contextmanager
def handling(
    signals: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Let a function receive signals; afterward, whoever received them before does."""
    previous = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)


def _signalled(number: int, _frame: FrameType | None) -> None:
    request_stop(signal.Signals(number).name)
    if len(_reasons) > 1:
        should_stop()
