"""The address at which the server listens, taken before any model is loaded."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from alignkit.errors import Problem, RecipeError


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket at an address, before any model is loaded. Raises RecipeError if it cannot be used."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise RecipeError([Problem(f"no address {host}: {error.strerror}", help="--host 127.0.0.1")]) from None
    with listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
        except OSError as error:
            help = "choose another --port; 0 takes a free one"
            raise RecipeError([Problem(f"cannot listen at {host}:{port}: {error.strerror}", help=help)]) from None
        yield listening


def url(listening: socket.socket) -> str:
    """The address that clients use."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"
