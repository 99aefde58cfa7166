"""The page's server: who may use it, and its routes.

People come with a link, by the address of the server, and no other site in their browser may ask
for anything. A link's token is exchanged for a cookie that scripts cannot read and other sites
cannot send. A change needs that cookie, the session's own CSRF token, and a browser that says that
it comes from this page.
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    RedirectResponse,
    Response,
)
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from alignkit.errors import AlignkitError, OutOfResource
from alignkit.report import Table
from alignkit_plugins.people.agreement import blocks, overview
from alignkit_plugins.people.label_api import LabelApi, guidelines_now, rendered
from alignkit_plugins.people.labels import TERMS, BadLabel
from alignkit_plugins.people.server import THIS_MACHINE, Address, Guard, Refused, json_body
from alignkit_plugins.people.store import Store
from alignkit_plugins.people.votes import disputes

HERE = Path(__file__).parent
MOST_SESSIONS = 1000
FULL, BUSY, BAD = (
    507,
    503,
    422,
)  # of HTTP: a page keeps what it sent and tries again, except if it is bad
STALE = "this link was for another run of the server; open the address that it printed"


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
    _begun: dict[str, Session] = field(default_factory=dict)  # cookie -> session

    def __post_init__(self) -> None:
        self.links = {name: secrets.token_urlsafe(32) for name in self.annotators}

    def begin(self, token: str, cookie: str | None = None) -> str | None:
        """The cookie of a session; None if the token is none of the links'.

        cookie: of the browser, whose other tabs stay in their session if it is the same
        annotator's.
        """
        for name, expected in self.links.items():
            if hmac.compare_digest(expected.encode(), token.encode()):
                session = self.of(cookie)
                if session is not None and session.annotator == name:
                    return cookie
                while len(self._begun) >= MOST_SESSIONS:
                    del self._begun[next(iter(self._begun))]
                cookie = secrets.token_urlsafe(32)
                self._begun[cookie] = Session(
                    name, name == self.annotators[0], secrets.token_urlsafe(32)
                )
                return cookie
        return None

    def of(self, cookie: str | None) -> Session | None:
        """The session of a cookie."""
        return self._begun.get(cookie or "")


def cookie_name(request: Request) -> str:
    """Cookies of one host are sent to all its ports, so each server needs a name of its own."""
    return f"alignkit-label-{request.url.port or 80}"


def make_app(api: LabelApi, sessions: Sessions, title: str = "Label") -> Starlette:
    """The page's application. title: shown to labelers, so it must not say who wrote the
    answers.
    """
    site = _Site(api, sessions, title)
    shared = Mount("/static", StaticFiles(directory=HERE / "static"))
    routes: list[Any] = [
        Route("/", site.label),
        Route("/adjudicate", site.adjudicate),
        Route("/quality", site.quality),
    ]
    reviews = {"next": api.next_dispute, "submit": api.adjudicate, "undo": api.undo}
    labels = {"next": api.next, "submit": api.submit, "undo": api.undo, "consent": api.consent}
    for mode, acts in (("adjudicate", reviews), ("label", labels)):
        for name, act in acts.items():
            action = partial(site.action, act=act, review=mode == "adjudicate")
            routes.append(Route(f"/api/{mode}/{name}", action, methods=["POST"]))
    return Starlette(
        routes=[*routes, shared], middleware=[Middleware(Guard, address=sessions.address)]
    )


@dataclass(frozen=True)
class _Site:
    """What all requests share."""

    api: LabelApi
    sessions: Sessions
    title: str
    pages: Environment = field(
        default_factory=lambda: Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
    )

    async def label(self, request: Request) -> Response:
        return await self._opened(request, self._item, "label")

    async def adjudicate(self, request: Request) -> Response:
        return await self._opened(request, self._item, "adjudicate")

    async def quality(self, request: Request) -> Response:
        return await self._opened(request, self._tables, "quality")

    async def _opened(
        self, request: Request, show: Callable[[Session, str], Response], mode: str
    ) -> Response:
        """A page for those who may open it; whoever has a token exchanges it for a cookie first."""
        cookie = cookie_name(request)
        session = self.sessions.of(request.cookies.get(cookie))
        if (token := request.query_params.get("token")) is not None:
            if (value := self.sessions.begin(token, request.cookies.get(cookie))) is None:
                return self._page("closed.html.j2", None, 401)
            response = RedirectResponse(request.url.path, 303)  # takes the token out of the address
            secure = request.url.scheme == "https"
            response.set_cookie(
                cookie, value, httponly=True, secure=secure, samesite="strict", path="/"
            )
            return response
        if session is None or (mode == "adjudicate" and not session.reviewer):
            return self._page("closed.html.j2", session, 403 if session else 401)
        return await run_in_threadpool(show, session, mode)

    def _page(self, name: str, session: Session | None, status: int = 200, **more: Any) -> Response:
        page = self.pages.get_template(name).render(title=self.title, session=session, **more)
        return HTMLResponse(page, status)

    def _item(self, session: Session, mode: str) -> Response:
        version, text = guidelines_now(self.api.store)
        more: dict[str, Any] = {
            "mode": mode,
            "version": version,
            "guidelines": Markup(rendered(text)),
            "terms": TERMS,
        }
        return self._page("page.html.j2", session, **more)

    def _tables(self, session: Session, mode: str) -> Response:
        store = self.api.store
        tables = quality(store, session.annotator, session.reviewer)
        return self._page(
            "quality.html.j2", session, tables=tables, disputes=disputes(store, session.annotator)
        )

    async def action(
        self, request: Request, act: Callable[[str, Any], Any], review: bool = False
    ) -> Response:
        """What `act` returns for the annotator and the message that the page sent, as JSON."""
        session = self.sessions.of(request.cookies.get(cookie_name(request)))
        if session is None or (review and not session.reviewer):
            return error(401, STALE)
        headers = request.headers
        try:
            if headers.get("origin") != f"{request.url.scheme}://{headers.get('host', '')}":
                raise Refused(403, "the request does not come from this page")
            if not hmac.compare_digest(
                headers.get("x-csrf-token", "").encode(), session.csrf.encode()
            ):
                raise Refused(403, "the page is from an earlier session; reload it")
            message = json.loads(await json_body(request))
            if not isinstance(message, dict):
                raise BadLabel("a message is a JSON object")
            return JSONResponse(await run_in_threadpool(act, session.annotator, message))
        except Refused as refused:
            return error(refused.status, str(refused))
        except (BadLabel, ValueError, RecursionError) as bad:
            return error(BAD, str(bad))
        except OutOfResource as full:
            return error(FULL, str(full))
        except AlignkitError as failed:
            return error(BUSY, str(failed))


def error(status: int, reason: str) -> Response:
    """An error as pages read it."""
    return JSONResponse({"error": reason}, status)


def quality(store: Store, annotator: str, reviewer: bool) -> list[Table]:
    """What `alignkit labels` reports; only their own lines for those who are no reviewers."""
    facts = overview(store)
    tables = []
    for block in blocks(facts) if facts["people"] else ():
        if isinstance(block, Table) and reviewer:
            tables.append(block)
        elif isinstance(block, Table) and "annotator" in block.columns:
            at = list(block.columns).index("annotator")
            tables.append(
                replace(block, rows=[row for row in block.rows if row[at] == annotator], note="")
            )
    return tables
