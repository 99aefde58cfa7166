"""The server of the page: its routes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from markupsafe import Markup
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.routing import Route

from alignkit.report import Table
from alignkit_plugins.people.effective_labels import disputes
from alignkit_plugins.people.guard import Session, Sessions
from alignkit_plugins.people.guidelines import rendered
from alignkit_plugins.people.label_api import LabelApi
from alignkit_plugins.people.labels import TERMS
from alignkit_plugins.people.overview import blocks, overview
from alignkit_plugins.people.pages import Site, guarded, templates
from alignkit_plugins.people.store import Store


def make_app(api: LabelApi, sessions: Sessions, title: str = "Label") -> Starlette:
    """The page's application. title: shown to labelers, so it must not say who wrote the
    answers.
    """
    site = Site(sessions, title, templates("alignkit label"))
    routes: list[Any] = [
        Route("/", site.opened(partial(_label_page, site, api, "label"))),
        Route(
            "/adjudicate", site.opened(partial(_label_page, site, api, "adjudicate"), review=True)
        ),
        Route("/quality", site.opened(partial(_quality_page, site, api.store))),
    ]
    acts = {"next": api.next_dispute, "submit": api.adjudicate, "undo": api.undo}
    for name, act in acts.items():
        action = partial(site.action, act=act, review=True)
        routes.append(Route(f"/api/adjudicate/{name}", action, methods=["POST"]))
    for name in ("next", "submit", "undo", "consent"):
        routes.append(
            Route(
                f"/api/label/{name}", partial(site.action, act=getattr(api, name)), methods=["POST"]
            )
        )
    return guarded(routes, sessions)


async def _label_page(site: Site, api: LabelApi, mode: str, session: Session) -> Response:
    version, text = await run_in_threadpool(api.guidelines.current)
    return site.page(
        "page.html.j2",
        session,
        mode=mode,
        version=version,
        guidelines=Markup(rendered(text)),
        terms=TERMS,
    )


async def _quality_page(site: Site, store: Store, session: Session) -> Response:
    tables = await run_in_threadpool(quality, store, session.annotator, session.reviewer)
    left = await run_in_threadpool(disputes, store, session.annotator)
    return site.page("quality.html.j2", session, tables=tables, disputes=left)


def quality(store: Store, annotator: str, reviewer: bool) -> list[Table]:
    """What `alignkit labels` reports; only their own lines for those who are no reviewers."""
    facts = overview(store)
    tables = (
        [block for block in blocks(facts) if isinstance(block, Table)] if facts["people"] else []
    )
    if reviewer:
        return tables
    own = [
        (each, list(each.columns).index("annotator"))
        for each in tables
        if "annotator" in each.columns
    ]
    return [
        replace(each, rows=[row for row in each.rows if row[at] == annotator], note="")
        for each, at in own
    ]
