"""What every page of alignkit's servers shares: sessions, templates, and how errors reach a
page.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from alignkit_plugins.people.server import Guard
from alignkit_plugins.people.site import Session, Sessions, cookie_name

HERE = Path(__file__).parent
# Of HTTP: a page keeps what it sent and tries again, except if it is bad
FULL, BUSY, BAD = 507, 503, 422
STALE = "this link was for another run of the server; open the address that it printed"


@dataclass(frozen=True)
class Site:
    """What all requests share. title: shown to people, so it must not say who wrote the answers."""

    sessions: Sessions
    title: str
    pages: Environment

    def session(self, request: Request) -> Session | None:
        """The session of a request."""
        return self.sessions.of(request.cookies.get(cookie_name(request)))

    def opened(self, show: Callable[[Session], Awaitable[Response]], review: bool = False) -> Any:
        """An endpoint that shows a page to those who may open it. review: only reviewers may."""

        async def endpoint(request: Request) -> Response:
            if "token" in request.query_params:
                return self._entered(request)
            session = self.session(request)
            if session is None or (review and not session.reviewer):
                return self.closed(session)
            return await show(session)

        return endpoint

    def _entered(self, request: Request) -> Response:
        """Exchange the token for a cookie; the redirect takes the token out of the address."""
        cookie = self.sessions.begin(
            request.query_params["token"], request.cookies.get(cookie_name(request))
        )
        if cookie is None:
            return self.closed(None)
        response = RedirectResponse(request.url.path, 303)
        secure = request.url.scheme == "https"
        response.set_cookie(
            cookie_name(request), cookie, httponly=True, secure=secure, samesite="strict", path="/"
        )
        return response

    def page(self, name: str, session: Session | None, status: int = 200, **more: Any) -> Response:
        """A page from its template."""
        page = self.pages.get_template(name)
        return HTMLResponse(page.render(title=self.title, session=session, **more), status)

    def closed(self, session: Session | None) -> Response:
        """What somebody sees who may not open a page."""
        return self.page("closed.html.j2", session, 403 if session else 401)


def templates(program: str, *folders: Path) -> Environment:
    """The templates in these folders, and those that all pages share. program: the command whose
    pages they are.
    """
    environment = Environment(
        loader=FileSystemLoader([*folders, HERE / "templates"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["program"] = program
    return environment


def guarded(routes: Sequence[Any], sessions: Sessions) -> Starlette:
    """An application that only its own pages may use, at the address of the sessions; with the
    files that all share.
    """
    shared = Mount("/static", StaticFiles(directory=HERE / "static"))
    return Starlette(
        routes=[*routes, shared], middleware=[Middleware(Guard, address=sessions.address)]
    )
