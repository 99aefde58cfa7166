"""The end of a process in time, whatever the threads and exit hooks of other libraries still wait for."""

from __future__ import annotations

import gc
import os
import queue
import sys
import threading
import time

_codes: queue.SimpleQueue[int] = queue.SimpleQueue()


def leaving(code: int) -> int:
    """Say that this process ends now with an exit code; returns it."""
    gc.freeze()  # Python would look for garbage among all of torch's objects, which takes seconds
    _codes.put(code)
    return code


def leave(code: int) -> None:
    """End this process at once, from any thread."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def end_within(seconds: float) -> None:
    """End this process at most so long after it calls `leaving`; a process that never does is left alone."""

    def watch() -> None:
        code = _codes.get()
        time.sleep(seconds)
        leave(code)

    threading.Thread(target=watch, name="end-within", daemon=True).start()
