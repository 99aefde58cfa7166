"""The server of the page: its routes."""

from __future__ import annotations

from functools import partial
from typing import Any

from markupsafe import Markup
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from alignkit_apps.label.annotator_stats import Latest, stats_of
from alignkit_apps.label.guidelines import rendered
from alignkit_apps.label.label_api import TERMS, LabelApi
from alignkit_apps.web.guard import Session, Sessions
from alignkit_apps.web.pages import STALE, Site, error, guarded, templates
from alignkit_plugins.people.assignment import REPEAT_AFTER


def make_app(api: LabelApi, sessions: Sessions, title: str) -> Starlette:
    """The page's application. title: shown to labelers, so it must not say who wrote the answers."""
    site, latest = Site(sessions, title, templates("alignkit label")), Latest(api.store)
    everyone = {name: getattr(api, name) for name in ("next", "submit", "undo", "draft", "consent", "contest")}
    reviewer = {"next": api.next_dispute, "submit": api.adjudicate, "undo": api.undo}
    routes: list[Any] = [
        Route("/", site.opened(partial(_label_page, site, api, "label"))),
        Route("/adjudicate", site.opened(partial(_label_page, site, api, "adjudicate"), review=True)),
        Route("/mine", site.opened(partial(_mine_page, site, api))),
        Route("/quality", site.opened(partial(_quality_page, site, latest), review=True)),
        Route("/quality/state", partial(_quality_state, site, latest)),
        *(Route(f"/api/label/{name}", partial(site.action, act=act), methods=["POST"])
          for name, act in everyone.items()),
        *(Route(f"/api/adjudicate/{name}", partial(site.action, act=act, review=True), methods=["POST"])
          for name, act in reviewer.items()),
    ]  # fmt: skip
    return guarded(routes, sessions)


async def _label_page(site: Site, api: LabelApi, mode: str, session: Session) -> Response:
    version, text = await run_in_threadpool(api.guidelines.current)
    return site.page(
        "page.html.j2", session, mode=mode, version=version, guidelines=Markup(rendered(text)), terms=TERMS
    )


async def _mine_page(site: Site, api: LabelApi, session: Session) -> Response:
    found = await run_in_threadpool(stats_of, api.store, session.annotator)
    return site.page("mine.html.j2", session, mine=found, after=REPEAT_AFTER)


async def _quality_page(site: Site, latest: Latest, session: Session) -> Response:
    state, report = await run_in_threadpool(latest.quality)
    return site.page("quality.html.j2", session, report=report, state=state)


async def _quality_state(site: Site, latest: Latest, request: Request) -> Response:
    session = site.session(request)
    if session is None or not session.reviewer:
        return error(401, STALE)
    return JSONResponse({"state": await run_in_threadpool(latest.state)})
