"""The server of `alignkit serve`: requests by HTTP, answered in the main thread."""

from __future__ import annotations

import socket
from collections.abc import Callable

from alignkit_apps.policies.policy import Opened
from alignkit_apps.policies.work import Work
from alignkit_apps.serve.address import is_loopback
from alignkit_apps.serve.app import application
from alignkit_apps.web.server import hosted

LOCAL = ("localhost", "127.0.0.1", "::1")


def serve(
    opened: Opened,
    work: Work,
    listening: socket.socket,
    token: str | None,
    started: Callable[[], None],
    poll: Callable[[], None] = lambda: None,
) -> None:
    """Answer requests until the work is stopped, or `poll` raises. Raises RunFailed if the server ends by itself.

    started: called once clients can connect.
    """
    listening.listen()
    started()
    host = listening.getsockname()[0]
    hosts = (*LOCAL, host) if is_loopback(host) else None
    with hosted(application(opened.policies, work, hosts, token), listening) as look:

        def each() -> None:
            poll()
            look()

        work.run(each)
