"""The addresses of servers, the links of those who use a page, and HTTP servers."""

from __future__ import annotations

import errno
import getpass
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING
from urllib.parse import quote

from alignkit import errors
from alignkit.errors import refuse
from alignkit.io.text import printable
from alignkit_plugins.people.address import THIS_MACHINE, Address
from alignkit_plugins.people.records import check_annotator

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

    from alignkit_plugins.people.guard import Sessions

PORT, PORTS = 8765, 20  # the first port, and how many are tried
ENDING = 3  # seconds for open connections to end
PACKAGES = ("starlette", "uvicorn")  # of the extra `label`


def annotators_of(named: Sequence[str] | None) -> list[str]:
    """Who uses a page: those that were named, else the user of this machine.

    Raises BadLabel for an impossible name, RecipeError for one that is there twice.
    """
    names = list(named or ())
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        help = "each person needs a name of their own, which says whose a label is"
        refuse(f"--annotator {twice[0]} is there twice", help)
    if not names:
        with suppress(KeyError, OSError, ImportError):  # a container's user may have no name
            names = [getpass.getuser()]
    for name in names:
        check_annotator(name)
    return names or ["annotator"]


def listening(port: int | None, address: Address = THIS_MACHINE) -> socket.socket:
    """A socket on a free port, or on the first one if a proxy in front of the page has to know it.

    Raises RecipeError if the port that was asked for is taken, or the host is another's.
    """
    host, ports = address.host, 1 if address.public else PORTS
    tried = [port] if port is not None else range(PORT, PORT + ports)
    for number in tried:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, number), family=family)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                help = (
                    "name an address of this machine, or https://NAME of a proxy, and a port "
                    "that you may use"
                )
                refuse(f"--host {host}: {error.strerror}", help)
    refuse(f"port {tried[0]} is in use", "name another one with --port")


def addresses_of(sessions: Sessions, listener: socket.socket) -> dict[str, str]:
    """The address of each annotator."""
    start = sessions.address.url(listener)
    return {name: f"{start}/?token={quote(token)}" for name, token in sessions.links.items()}


def announce(addresses: Mapping[str, str], what: str) -> None:
    """Print the address of each annotator, and what to do with it."""
    for name, address in addresses.items():
        print(printable(address if len(addresses) == 1 else f"{name}: {address}"), flush=True)
    print(f"{what} Ctrl-C stops.", file=sys.stderr, flush=True)


def server_of(app: ASGIApp) -> uvicorn.Server:
    """A server that says nothing of itself."""
    import uvicorn

    options = {
        "log_level": "warning",
        "access_log": False,
        "lifespan": "off",
        "server_header": False,
    }
    return uvicorn.Server(
        uvicorn.Config(app, timeout_graceful_shutdown=ENDING, proxy_headers=False, **options)
    )


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM ask for a stop (`alignkit.errors.stoppable`); a second one stops at
    once.
    """

    def interrupted(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        errors.request_stop("SIGINT")

    with errors.stoppable(), errors.handling([signal.SIGINT], interrupted):
        yield
