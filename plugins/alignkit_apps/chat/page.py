"""The page of a chat: its routes, and answers that are sent while they are written."""

from __future__ import annotations

import asyncio
import json
import queue
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from alignkit_apps.chat.chat_api import Asked, ChatApi, State
from alignkit_apps.policies.work import POLL, Busy
from alignkit_apps.web.guard import Session, Sessions
from alignkit_apps.web.pages import BUSY, Site, error, guarded, templates
from alignkit_plugins.people.collection import TERMS

HERE = Path(__file__).parent
MOST_WAITING = 16  # tasks


def make_page(api: ChatApi, tasks: TaskQueue, sessions: Sessions) -> Starlette:
    """The page's application. tasks: of the thread that has the models."""
    site = Site(sessions, "Chat", templates("alignkit chat", HERE / "templates"))
    actions = ("names", "consent", "rate", "choose", "edit", "undo")
    routes: list[Any] = [
        Route("/", site.opened(partial(_page, site, api))),
        Route("/api/chat/ask", partial(_ask, site, api, tasks), methods=["POST"]),
        *(Route(f"/api/chat/{name}", partial(site.action, act=getattr(api, name)), methods=["POST"])
          for name in actions),
        Mount("/chat", StaticFiles(directory=HERE / "static")),
    ]  # fmt: skip
    return guarded(routes, sessions)


async def _page(site: Site, api: ChatApi, session: Session) -> Response:
    setup = await run_in_threadpool(api.setup, session.annotator)
    return site.page("chat.html.j2", session, setup=json.dumps(setup), terms=TERMS, **setup)


async def _ask(site: Site, api: ChatApi, tasks: TaskQueue, request: Request) -> Response:
    """Lines of JSON, each of which says what happened; they end when all sides have answered."""
    loop = asyncio.get_running_loop()

    def begin(annotator: str, message: Any) -> Response:
        answers = _Answers(api, tasks, annotator, api.checked(message), loop)
        try:
            tasks.submit(answers.write)
        except Busy:
            return error(BUSY, "too many questions are waiting; try again later")
        return StreamingResponse(answers.lines(), media_type="application/x-ndjson")

    return await site.action(request, begin)


class _Answers:
    """The answers to a question: written in the model's thread, and sent in the server's."""

    def __init__(self, api: ChatApi, tasks: TaskQueue, annotator: str, asked: Asked, loop: asyncio.AbstractEventLoop):
        self._api, self._tasks, self._annotator, self._asked, self._loop = api, tasks, annotator, asked, loop
        self._events: asyncio.Queue[State | None] = asyncio.Queue()
        self._left = False

    def write(self) -> None:
        """Answer, unless nobody waits any more."""
        try:
            if self._wanted():
                self._api.answer(self._annotator, self._asked, self._tell, self._wanted)
        finally:
            self._tell(None)

    async def lines(self) -> AsyncIterator[str]:
        """What happens, until the answers are complete, and empty lines while nothing does, or a proxy would give up.

        A page that leaves ends them.
        """
        try:
            while True:
                try:
                    event = await asyncio.wait_for(self._events.get(), 1)
                except TimeoutError:
                    if self._tasks.stopping:
                        return
                    yield "\n"
                else:
                    if event is None:
                        return
                    yield json.dumps(event) + "\n"
        finally:
            self._left = True

    def _wanted(self) -> bool:
        return not (self._left or self._tasks.stopping)

    def _tell(self, event: State | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


class TaskQueue:
    """Tasks of the thread that has the models, one after the other."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[Callable[[], None]] = queue.Queue(MOST_WAITING)
        self.stopping = False

    def submit(self, task: Callable[[], None]) -> None:
        """Let a task wait for its turn, from any thread. Raises Busy if too many wait."""
        try:
            self._waiting.put_nowait(task)
        except queue.Full:
            raise Busy from None

    def stop(self) -> None:
        """End the loop, and the answers that are being written, from any thread."""
        self.stopping = True

    def run(self, poll: Callable[[], None] = lambda: None) -> None:
        """Do tasks until `stop` is called. poll: called now and then; what it raises ends the loop."""
        try:
            while not self.stopping:
                poll()
                try:
                    task = self._waiting.get(timeout=POLL)
                except queue.Empty:
                    continue
                task()
        finally:
            self.stopping = True
