"""The report of a run while it works, as a page on this machine that reloads itself; it survives the end of the run."""

from __future__ import annotations

import hmac
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import psutil

from alignkit.extras import check_extra
from alignkit.runs.files import RECIPE, STARTS
from alignkit_apps.report.facts import facts_of
from alignkit_apps.report.files import each_object
from alignkit_apps.report.history import in_use, log_lines
from alignkit_apps.report.page import page
from alignkit_apps.web.hosting import PACKAGES, addresses_of, annotators_of, announce, listening, server_of

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from alignkit_apps.web.guard import Session, Sessions

EVERY = 15  # seconds between reloads
SHOWN = 3  # samples
PATIENCE = 300  # tenths of a second that a run may take to start
CSRF = secrets.token_hex(16)  # stands for a session's token, since all sessions share a page
# Such as `sft step 1/6 loss 6.3 (1s, 7s left)`, or `report: sampling from sft 3/10 (1s, 2s left)`.
_PROGRESS = re.compile(r"(\S+?):? (.+?) (\d+)/(\d+)(.*) \(.*, (.*) left\)")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; frame-ancestors 'none'"


def serve_live(run: Path, port: int | None = None, open_page: bool = False) -> None:
    """Serve the page of a run until Ctrl-C. port: None for a free one.

    Raises RecipeError if the folder is not that of a run or the port is taken, RunFailed if a package is missing.
    """
    check_extra("the page", "label", *PACKAGES)
    from alignkit_apps.web.guard import Sessions

    facts_of(run)
    sessions = Sessions(annotators_of(None))
    with listening(port) as listener:
        announce(addresses_of(sessions, listener), "The page reloads itself while the run works.", open_page)
        with suppress(KeyboardInterrupt):
            server_of(make_app(LiveRun(run), sessions)).run(sockets=[listener])


class LiveRun:
    """A run whose page is built again when it is older than EVERY seconds."""

    def __init__(self, run: Path):
        self.run = run.resolve()
        self.lock = threading.Lock()
        self.built = 0.0
        self.text = ""
        self.started: subprocess.Popen[bytes] | None = None

    def page(self, csrf: str) -> str:
        """The page, whose buttons send `csrf`."""
        with self.lock:
            if self.started is not None:
                self.started.poll()  # or an ended one would remain as a zombie
            if time.monotonic() - self.built > EVERY - 1:
                self.text, self.built = page(facts_of(self.run), self.state()), time.monotonic()
            return self.text.replace(CSRF, csrf)

    def state(self) -> dict[str, Any]:
        """What a report does not say: what the run does now, its latest samples, and which button there is."""
        works = in_use(self.run)
        told = [found.groups() for _, _, text in log_lines(self.run) if works and (found := _PROGRESS.fullmatch(text))]
        stage, unit, done, total, numbers, left = told[-1] if told else [""] * 6
        return {
            "every": EVERY if works else 0,
            "progress": f"{stage}: {unit} {done} of {total}, {left} left" if told else "",
            "numbers": numbers,
            "samples": list(_latest(self.run)) if works else [],
            "action": "stop" if works else "continue",
            "csrf": CSRF,
        }

    def stop(self) -> None:
        """Ask the process that holds the run's lock to stop; it writes a checkpoint first."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid != os.getpid() and any(Path(f.path) == self.run / ".lock" for f in process.open_files()):
                    process.send_signal(signal.SIGTERM)
        self.built = 0.0

    def resume(self) -> None:
        """Start the run again in a process of its own, which outlives this server."""
        command = [sys.executable, "-m", "alignkit", "run", str(self.run / RECIPE), "--out", str(self.run)]
        quiet = subprocess.DEVNULL  # run.log has all of it
        with self.lock:
            if in_use(self.run):
                return
            before = _size(self.run / STARTS)
            self.started = subprocess.Popen(command, start_new_session=True, stdin=quiet, stdout=quiet, stderr=quiet)
            # Until the next page shows that it works. To try its lock meanwhile could cost it the start.
            for _ in range(PATIENCE):
                if _size(self.run / STARTS) > before or self.started.poll() is not None:
                    break
                time.sleep(0.1)
            self.built = 0.0


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _latest(run: Path) -> Iterator[Mapping[str, Any]]:
    """The first answers of the newest iteration of any stage, as samples of a report."""
    files = sorted(run.glob("*/rollouts/*.jsonl"), key=lambda file: file.stat().st_mtime)
    for row, group in enumerate(islice(each_object(files[-1]), SHOWN) if files else (), 1):
        with suppress(KeyError, TypeError, AttributeError, IndexError):
            first = group["responses"][0]  # type: ignore[index]
            known = {"policy": str(first["source"]), "text": str(first["text"]), "tokens": len(first["tokens"])}
            answer = {**known, "score": first["scores"].get("reward"), "truncated": bool(first.get("truncated"))}
            prompt = [{"role": "user", "content": str(group["prompt"][-1]["content"])}]  # type: ignore[index]
            yield {"stage": "", "kind": "", "row": row, "reward": "reward", "prompt": prompt, "answers": [answer]}


def make_app(live: LiveRun, sessions: Sessions) -> Starlette:
    """The page at /, and what its buttons send."""
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse
    from starlette.routing import Route

    from alignkit_apps.web.pages import Site, guarded, templates

    site = Site(sessions, "alignkit", templates("alignkit show"))

    async def show(session: Session) -> Response:
        return HTMLResponse(await run_in_threadpool(live.page, session.csrf))

    async def act(request: Request) -> Response:
        session, body = site.session(request), bytearray()
        async for part in request.stream():
            body += part[:1000]
        sent = parse_qs(bytes(body[:1000]).decode("latin-1")).get("csrf", [""])[0]
        if session is None or not hmac.compare_digest(sent.encode(), session.csrf.encode()):
            return PlainTextResponse("The page is from an earlier session; reload it.", 403)
        await run_in_threadpool(live.stop if request.url.path == "/stop" else live.resume)
        return RedirectResponse("/", 303)

    routes = [Route("/", site.opened(show)), *(Route(name, act, methods=["POST"]) for name in ("/stop", "/continue"))]
    app = guarded(routes, sessions)
    app.user_middleware.insert(0, Middleware(_Policy))
    return app


class _Policy:
    """ASGI middleware: the policy of a report, which has its style in it, instead of that of pages with scripts."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def changed(message: Any) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if name != b"content-security-policy"]
                message["headers"] = [*kept, (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, changed)
