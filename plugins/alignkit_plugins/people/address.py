"""The address of a page or an endpoint: for this machine only, unless `--host` names another
one.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from alignkit.errors import refuse
from alignkit.io.text import printable

HOST = "127.0.0.1"
HOSTS = (HOST, "localhost")
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:@/\[\]]+)(?::[0-9]+)?")


@dataclass(frozen=True)
class Address:
    """Where a page is. host: at which its server listens. names: which browsers may call it; None:
    any.

    public: how the address of a proxy begins that does TLS, such as https://labels.example.org;
    empty without one.
    """

    host: str = HOST
    names: Sequence[str] | None = HOSTS
    public: str = ""

    @property
    def scheme(self) -> str:
        """Of the addresses in browsers."""
        return "https" if self.public else "http"

    def url(self, listener: socket.socket) -> str:
        """How addresses begin in browsers."""
        return self.public or url(listener, self.names)

    def warn(self, listener: socket.socket) -> None:
        """Print what it means that others than this machine can reach the page."""
        if self.public:
            text = (
                f"note: {url(listener)} waits for a proxy at {self.public}, which must pass on "
                "the header Host"
            )
        elif not is_loopback(self.host):
            text = (
                f"warning: others can reach {self.url(listener)}. Nothing is encrypted: who "
                "watches the network can read all of it, links and tokens included\n"
                "  help: let a proxy do TLS, and name its address: --host https://NAME"
            )
        else:
            return
        print(printable(text), file=sys.stderr)


THIS_MACHINE = Address()


def address_of(host: str | None) -> Address:
    """The address that `--host` names: this machine's own by default. Raises RecipeError for one
    that is none.
    """
    if host is None or host in HOSTS:
        return THIS_MACHINE
    public = host.rstrip("/") if host.startswith("https://") else ""
    name = host_name(public.removeprefix("https://") or (f"[{host}]" if ":" in host else host))
    with suppress(ValueError):
        name = None if name is None or ipaddress.ip_address(name).is_unspecified else name
    if name is None or not re.fullmatch(r"[\w.:-]+", name):
        help = "name the address at which others reach this machine, or https://NAME of a proxy"
        refuse(f"--host {host}: no address that browsers can open", help)
    return Address(HOST if public else host, (name,), public)


def host_name(header: str) -> str | None:
    """The name in the header Host, without its port; None if it is not one."""
    found = _HOST.fullmatch(header)
    return found[1].strip("[]").lower() if found else None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def url(listener: socket.socket, names: Sequence[str] | None = None) -> str:
    """The address of a socket. names: of its host, of which the first is shown."""
    host, port = listener.getsockname()[:2]
    host = names[0] if names else host
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
