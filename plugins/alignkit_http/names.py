"""Lookups of servers' names: one that stalls holds nothing up."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import Any


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose lookups run in threads that nobody waits for at its end. Clients connect to what it found."""

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        """What `socket.getaddrinfo` finds. Raises OSError."""
        outcome: asyncio.Future[Any] = self.create_future()

        def look() -> None:
            try:
                found, error = socket.getaddrinfo(host, port, **options), None
            except Exception as raised:  # whoever waits for it raises it
                found, error = [], raised
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self.call_soon_threadsafe(_settle, outcome, found, error)

        threading.Thread(target=look, name="lookup", daemon=True).start()
        return await outcome


def _settle(outcome: asyncio.Future[Any], found: Any, error: Exception | None) -> None:
    if outcome.done():  # nobody waits any more
        return
    if error is None:
        outcome.set_result(found)
    else:
        outcome.set_exception(error)
