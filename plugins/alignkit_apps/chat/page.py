"""The page of a chat: its routes, and answers that are sent while they are written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from alignkit_apps.chat.chat_api import Asked, Booth, State, terms
from alignkit_apps.chat.task_queue import Line
from alignkit_apps.policies.work import Busy
from alignkit_apps.web.guard import Sessions
from alignkit_apps.web.pages import BUSY, STATIC, Site, error, guarded, templates

HERE = Path(__file__).parent


def make_page(booth: Booth, line: Line, sessions: Sessions) -> Starlette:
    """The page's application. line: of the thread that has the models."""
    site = Site(sessions, "Chat", templates(HERE / "templates"))
    actions = ("names", "consent", "rate", "choose", "edit", "undo")
    routes: list[Any] = [
        Route("/", partial(_page, site, booth)),
        Route("/api/chat/ask", partial(_ask, site, booth, line), methods=["POST"]),
        *(Route(f"/api/chat/{name}", partial(site.action, act=getattr(booth, name)), methods=["POST"])
          for name in actions),
        Mount("/static", StaticFiles(directory=STATIC)),
        Mount("/chat", StaticFiles(directory=HERE / "static")),
    ]  # fmt: skip
    return guarded(routes)


async def _page(site: Site, booth: Booth, request: Request) -> Response:
    if "token" in request.query_params:
        return site.enter(request)
    session = site.session(request)
    if session is None:
        return site.closed(None)
    setup = await run_in_threadpool(booth.setup, session.annotator)
    return site.page("chat.html.j2", session, setup=json.dumps(setup), terms=terms(booth.collection), **setup)


async def _ask(site: Site, booth: Booth, line: Line, request: Request) -> Response:
    """Lines of JSON, each of which says what happened; they end when all sides have answered."""
    loop = asyncio.get_running_loop()

    def begin(annotator: str, message: Any) -> Response:
        answers = _Answers(booth, line, annotator, booth.checked(message), loop)
        try:
            line.submit(answers.write)
        except Busy:
            return error(BUSY, "too many questions are waiting; try again later")
        return StreamingResponse(answers.lines(), media_type="application/x-ndjson")

    return await site.action(request, begin)


class _Answers:
    """The answers to a question: written in the model's thread, and sent in the server's."""

    def __init__(self, booth: Booth, line: Line, annotator: str, asked: Asked, loop: asyncio.AbstractEventLoop):
        self._booth, self._line, self._annotator, self._asked, self._loop = booth, line, annotator, asked, loop
        self._events: asyncio.Queue[State | None] = asyncio.Queue()
        self._left = False

    def write(self) -> None:
        """Answer, unless nobody waits any more."""
        try:
            if self._wanted():
                self._booth.answer(self._annotator, self._asked, self._tell, self._wanted)
        finally:
            self._tell(None)

    async def lines(self) -> AsyncIterator[str]:
        """What happens, until the answers are complete. A page that leaves ends them."""
        try:
            while True:
                try:
                    event = await asyncio.wait_for(self._events.get(), 1)
                except TimeoutError:
                    if self._line.stopping:
                        return
                    continue
                if event is None:
                    return
                yield json.dumps(event) + "\n"
        finally:
            self._left = True

    def _wanted(self) -> bool:
        return not (self._left or self._line.stopping)

    def _tell(self, event: State | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
