"""An HTTP server in a thread of its own. The main thread has the models, and receives signals."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from alignkit import stopping
from alignkit.errors import RunFailed

ENDING = 2  # seconds for open connections to end


@contextmanager
def hosted(app: ASGIApp, listening: socket.socket) -> Iterator[Callable[[], None]]:
    """Serve an application in another thread. Yields what raises RunFailed if the server has ended by itself."""
    options = {"log_level": "warning", "access_log": False, "lifespan": "off", "server_header": False}
    config = uvicorn.Config(app, timeout_graceful_shutdown=ENDING, proxy_headers=False, **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), name="http", daemon=True)
    thread.start()

    def look() -> None:
        if not thread.is_alive():
            raise RunFailed("the HTTP server has ended by itself; its message is above")

    try:
        yield look
    finally:
        server.should_exit = True
        thread.join(2 * ENDING)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM ask for a stop (`alignkit.stopping`); a second one stops at once."""

    def interrupted(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stopping.request_stop("SIGINT")

    with stopping.stoppable():
        before = signal.signal(signal.SIGINT, interrupted)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
