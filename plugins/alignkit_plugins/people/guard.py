"""Who may use the page: people with a link, by the address of the server, and no other site in
their browser.

A link's token is exchanged for a cookie that scripts cannot read and other sites cannot send. A
change needs that cookie, the session's own CSRF token, and a browser that says that it comes from
this page.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from alignkit_plugins.people.address import THIS_MACHINE, Address, host_name

MOST_BYTES = 1 << 20  # of a request
MOST_SESSIONS = 1000
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


class Refused(Exception):
    """A request that the server does not take. status: of HTTP."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Session:
    """A browser of an annotator. reviewer: who may see everyone's labels, and settle disputes."""

    annotator: str
    reviewer: bool
    csrf: str


@dataclass
class Sessions:
    """Links, one per annotator, and the sessions that were begun with them.

    The first annotator is the reviewer. address: by which browsers reach the server.
    """

    annotators: Sequence[str]
    address: Address = THIS_MACHINE
    links: dict[str, str] = field(default_factory=dict)  # annotator -> token
    _known: dict[str, Session] = field(default_factory=dict)  # cookie -> session

    def __post_init__(self) -> None:
        self.links = {name: secrets.token_urlsafe(32) for name in self.annotators}

    def begin(self, token: str, cookie: str | None = None) -> str | None:
        """The cookie of a session; None if the token is none of the links'.

        cookie: of the browser, whose other tabs stay in their session if it is the same
        annotator's.
        """
        for name, expected in self.links.items():
            if hmac.compare_digest(expected.encode(), token.encode()):
                if (known := self.of(cookie)) is not None and known.annotator == name:
                    return cookie
                while len(self._known) >= MOST_SESSIONS:
                    del self._known[next(iter(self._known))]
                cookie = secrets.token_urlsafe(32)
                self._known[cookie] = Session(
                    name, name == self.annotators[0], secrets.token_urlsafe(32)
                )
                return cookie
        return None

    def of(self, cookie: str | None) -> Session | None:
        """The session of a cookie."""
        return self._known.get(cookie or "")


def cookie_name(request: Request) -> str:
    """Cookies of one host are sent to all its ports, so each server needs a name of its own."""
    return f"alignkit-label-{request.url.port or 80}"


class Guard:
    """ASGI middleware: adds the headers, and refuses other hosts and what another site made the
    browser ask for.

    token: which whoever uses addresses below /v1 must send as an API key; None: none.
    """

    def __init__(self, app: Any, address: Address, token: str | None = None):
        self.app, self.address, self.token = app, address, token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
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
        answer = self.app if fault is None else PlainTextResponse(fault[1], fault[0])
        await answer(scope, receive, guarded)

    def _fault(self, scope: Any, headers: Headers) -> tuple[int, str] | None:
        """Status and reason of a request that is refused."""
        names, host = self.address.names, headers.get("host", "")
        if names is not None and host_name(host) not in names:
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


async def checked_body(request: Request, session: Session) -> bytes:
    """The body of a change. Raises `Refused` unless this page, in this session, sent it."""
    headers = request.headers
    if headers.get("origin") != f"{request.url.scheme}://{headers.get('host', '')}":
        raise Refused(403, "the request does not come from this page")
    if not hmac.compare_digest(headers.get("x-csrf-token", "").encode(), session.csrf.encode()):
        raise Refused(403, "the page is from an earlier session; reload it")
    return await json_body(request)


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
