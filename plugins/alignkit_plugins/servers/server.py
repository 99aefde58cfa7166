"""Where a page or an endpoint is, its HTTP server, and what that refuses.

It is for this machine only, unless `--host` names another address.
"""

from __future__ import annotations

import errno
import hmac
import re
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from alignkit.errors import refuse
from alignkit.io.text import printable
from alignkit.runs import signals

if TYPE_CHECKING:
    import uvicorn
    from starlette.datastructures import Headers
    from starlette.requests import Request
    from starlette.types import ASGIApp


HOST = "127.0.0.1"
HOSTS = (HOST, "localhost")
PORT, PORTS = 8765, 20  # the first port, and how many are tried
MOST_BYTES = 1 << 20  # the largest request
ENDING = 3  # seconds for open connections to end
PACKAGES = ("starlette", "uvicorn")  # those of the extra `label`
_HOST = re.compile(r"([\w.-]+)(?::\d+)?")  # a name, with or without a port


POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src "
    "'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "require-trusted-types-for 'script'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


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
        """The scheme of the addresses that browsers use."""
        return "https" if self.public else "http"

    def url(self, listener: socket.socket) -> str:
        """How addresses begin in browsers."""
        return self.public or url(listener)

    def warn(self, listener: socket.socket) -> None:
        """Print what it means that others than this machine can reach the page."""
        if self.public:
            text = (
                f"note: {url(listener)} waits for a proxy at {self.public}, which must pass on "
                "the header Host"
            )
        elif self.host not in HOSTS:
            text = (
                f"warning: others can reach {url(listener)}. Nothing is encrypted: who watches "
                "the network can read all of it, tokens included\n"
                "  help: let a proxy do TLS, and name its address: --host https://NAME"
            )
        else:
            return
        print(printable(text), file=sys.stderr)


THIS_MACHINE = Address()


def address_of(host: str | None) -> Address:
    """The address that `--host` names: this machine's own by default, else that of a proxy. Raises
    RecipeError for another one.
    """
    if host is None or host in HOSTS:
        return THIS_MACHINE
    name = _HOST.fullmatch(host.removeprefix("https://").rstrip("/").lower())
    if name is None or not host.startswith("https://"):
        refuse(f"--host {host}: no address that browsers can open", "write https://NAME of a proxy")
    return Address(HOST, (name[1],), f"https://{name[0]}")


def url(listener: socket.socket) -> str:
    """The address of a socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listening(port: int | None, address: Address = THIS_MACHINE) -> socket.socket:
    """A socket on a free port, or on the first one if a proxy in front of the page has to know it.

    Raises RecipeError if the port that was asked for is taken, or the host is another's.
    """
    host, ports = address.host, 1 if address.public else PORTS
    tried = range(PORT, PORT + ports) if port is None else [port]
    for number in tried:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, number), family=family)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                help = "name an address of this machine, and a port that you may use"
                refuse(f"--host {host}: {error.strerror}", help)
    refuse(f"port {tried[0]} is in use", "name another one with --port")


def server_of(app: ASGIApp) -> uvicorn.Server:
    """A server that says nothing of itself."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=ENDING,
    )
    return uvicorn.Server(config)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM ask for a stop (`alignkit.runs.signals.stoppable`); a second one stops at
    once.
    """

    def interrupted(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signals.request_stop("SIGINT")

    with signals.stoppable(), signals.handling([signal.SIGINT], interrupted):
        yield


# Requests


def error_body(status: int, reason: str) -> dict[str, Any]:
    """An error as all clients read it, in OpenAI's form."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": reason, "type": kind, "param": None, "code": None}}


class Refused(Exception):
    """A request that the server does not take. status: of HTTP."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


@dataclass
class Guard:
    """ASGI middleware: adds the headers, and refuses other hosts and what another site made the
    browser ask for.

    token: which whoever uses addresses below /v1 must send as an API key; None: none.
    """

    app: Any
    address: Address
    token: str | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.datastructures import Headers, MutableHeaders
        from starlette.requests import ClientDisconnect
        from starlette.responses import JSONResponse

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        scope["scheme"] = self.address.scheme  # a proxy that does TLS speaks HTTP with this server
        fault = self._fault(scope, Headers(scope=scope))
        answer = self.app if fault is None else JSONResponse(error_body(*fault), fault[0])
        with suppress(ClientDisconnect):  # nobody waits for the answer
            await answer(scope, receive, guarded)

    def _fault(self, scope: Any, headers: Headers) -> tuple[int, str] | None:
        """Status and reason of a request that is refused."""
        names, host = self.address.names, _HOST.fullmatch(headers.get("host", "").lower())
        if names is not None and (host is None or host[1] not in names):
            return 400, f"This server does not answer for that host; ask for {names[0]}."
        site = headers.get("sec-fetch-site", "none")
        opened = (
            scope["method"] == "GET" and headers.get("sec-fetch-mode", "navigate") == "navigate"
        )
        if site not in ("none", "same-origin") and not opened:
            return 403, "Another site asked for this."
        sent = headers.get("authorization", "").removeprefix("Bearer ")
        needed = self.token if scope["path"].startswith("/v1/") else None
        if needed is not None and not hmac.compare_digest(sent.encode("latin-1"), needed.encode()):
            return 401, "The API key is not the token of this server."
        return None


async def json_body(request: Request) -> bytes:
    """The JSON of a request. Only JSON: a page of another host may send other types without asking
    first.

    Raises `Refused` for another type, or too much of it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, f"the content type must be application/json, not '{kind:.60}'")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise Refused(413, f"the request has more than {MOST_BYTES:,} bytes")
    return bytes(body)
