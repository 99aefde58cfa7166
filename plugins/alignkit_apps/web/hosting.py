"""A page's address on this machine, the links of those who use it, and the server."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import quote

from alignkit.errors import Problem, RecipeError
from alignkit_apps.feedback.records import check_annotator

if TYPE_CHECKING:
    import uvicorn

    from alignkit_apps.web.guard import Sessions

PORT, PORTS = 8765, 20  # the first port, and how many are tried
HOST = "127.0.0.1"
PACKAGES = ("starlette", "uvicorn")  # of the extra `label`


def annotators_of(named: Sequence[str] | None) -> list[str]:
    """Who uses a page: those that were named, else the user of this machine.

    Raises BadLabel for an impossible name, RecipeError for one that is there twice.
    """
    names = list(named or ())
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        help = "each person needs a name of their own, which says whose a label is"
        raise RecipeError([Problem(f"--annotator {twice[0]} is there twice", help=help)])
    if not names:
        with suppress(KeyError, OSError, ImportError):  # a container's user may have no name
            names = [getpass.getuser()]
    for name in names:
        check_annotator(name)
    return names or ["annotator"]


def listening(port: int | None) -> socket.socket:
    """A socket on a free port of this machine. Raises RecipeError if the port that was asked for is taken."""
    tried = [port] if port is not None else range(PORT, PORT + PORTS)
    for number in tried:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, number))
            listener.listen()
            return listener
        except OSError:
            listener.close()
    raise RecipeError([Problem(f"port {tried[0]} is in use", help="name another one with --port")])


def addresses_of(sessions: Sessions, listener: socket.socket) -> dict[str, str]:
    """The address of each annotator."""
    port = listener.getsockname()[1]
    return {name: f"http://{HOST}:{port}/?token={quote(token)}" for name, token in sessions.links.items()}


def server_of(app: object) -> uvicorn.Server:
    """A server that says nothing of itself."""
    import uvicorn

    config = uvicorn.Config(
        app,  # type: ignore[arg-type, unused-ignore]
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        timeout_graceful_shutdown=3,
    )
    return uvicorn.Server(config)
