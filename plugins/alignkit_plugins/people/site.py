"""The page's server: who may use it, and its routes.

People come with a link, by the address of the server, and no other site in their browser may ask
for anything. A link's token is exchanged for a cookie that scripts cannot read and other sites
cannot send. A change needs that cookie, the session's own CSRF token, and a browser that says that
it comes from this page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hmac import compare_digest
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

from markupsafe import Markup
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from alignkit.data.files import parse
from alignkit.errors import AlignkitError, BadRow
from alignkit_plugins.people.label_api import LabelApi, guidelines_now, rendered
from alignkit_plugins.people.labels import TERMS, BadLabel
from alignkit_plugins.servers.page import templates
from alignkit_plugins.servers.server import (
    THIS_MACHINE,
    Address,
    Guard,
    Refused,
    error_body,
    json_body,
)

HERE = Path(__file__).parent
BUSY, BAD = 503, 422  # a page keeps what it sent and tries again, except if it is bad
STALE = "this link was for another run of the server; open the address that it printed"


@dataclass(frozen=True)
class Session:
    """What an annotator's browsers need. token: of the link; it becomes the cookie."""

    annotator: str
    token: str = field(default_factory=partial(token_urlsafe, 32))
    cookie: str = field(default_factory=partial(token_urlsafe, 32))
    csrf: str = field(default_factory=partial(token_urlsafe, 32))


def make_app(
    api: LabelApi, sessions: Sequence[Session], address: Address = THIS_MACHINE
) -> Starlette:
    """The page's application. address: by which browsers reach the server."""
    site = _Site(api, sessions)
    routes: list[Any] = [
        Route("/", site.page),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ]
    for act in (api.next, api.submit, api.undo, api.consent, api.results):
        action = partial(site.action, act=act)
        routes.append(Route(f"/api/label/{act.__name__}", action, methods=["POST"]))
    return Starlette(routes=routes, middleware=[Middleware(Guard, address=address)])


def cookie_name(request: Request) -> str:
    """Cookies of one host are sent to all its ports, so each server needs a name of its own."""
    return f"alignkit-label-{request.url.port or 80}"


@dataclass(frozen=True)
class _Site:
    """What all requests share."""

    api: LabelApi
    sessions: Sequence[Session]

    def session(self, request: Request) -> Session | None:
        """The session of a request's cookie."""
        cookie = request.cookies.get(cookie_name(request), "")
        for session in self.sessions:
            if compare_digest(session.cookie.encode(), cookie.encode()):
                return session
        return None

    async def page(self, request: Request) -> Response:
        """The page for those who may open it; whoever has a token exchanges it for a cookie first."""
        pages = templates(HERE / "templates")
        token = request.query_params.get("token")
        for session in self.sessions:
            if token is not None and compare_digest(session.token.encode(), token.encode()):
                response = RedirectResponse(request.url.path, 303)  # takes the token out
                secure = request.url.scheme == "https"
                response.set_cookie(
                    cookie_name(request),
                    session.cookie,
                    httponly=True,
                    secure=secure,
                    samesite="strict",
                )
                return response
        known = self.session(request)
        if token is not None or known is None:
            return HTMLResponse(pages.get_template("closed.html.j2").render(), 401)
        version, text = await run_in_threadpool(guidelines_now, self.api.store)
        html = pages.get_template("label.html.j2").render(
            session=known, version=version, guidelines=Markup(rendered(text)), terms=TERMS
        )
        return HTMLResponse(html)

    async def action(self, request: Request, act: Callable[[str, Any], Any]) -> Response:
        """What `act` returns for the annotator and the message that the page sent, as JSON."""
        session = self.session(request)
        if session is None:
            return error(401, STALE)
        headers = request.headers
        try:
            if headers.get("origin") != f"{request.url.scheme}://{headers.get('host', '')}":
                raise Refused(403, "the request does not come from this page")
            if not compare_digest(headers.get("x-csrf-token", "").encode(), session.csrf.encode()):
                raise Refused(403, "the page is from an earlier session; reload it")
            message = parse(await json_body(request))
            if not isinstance(message, dict):
                raise BadLabel("a message is a JSON object")
            return JSONResponse(await run_in_threadpool(act, session.annotator, message))
        except Refused as refused:
            return error(refused.status, str(refused))
        except (BadLabel, BadRow, ValueError) as bad:
            return error(BAD, str(bad))
        except AlignkitError as failed:
            return error(BUSY, str(failed))


def error(status: int, reason: str) -> Response:
    return JSONResponse(error_body(status, reason), status)
