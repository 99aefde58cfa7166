"""A server of the labeling page for tests: as an application, and on a port, in a thread that can
be stopped.
"""

from __future__ import annotations

import asyncio
import re
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from alignkit_plugins.people.items import Item
from alignkit_plugins.people.label_api import LabelApi
from alignkit_plugins.people.store import Store
from alignkit_plugins.servers.server import listening, server_of
from tests.patience import PATIENCE
from tests.stores import pair

ADDRESS = "http://127.0.0.1:8765"
SECRET = "secret-model-7b"


def pairs(count: int, **more: Any) -> list[Item]:
    """Pairs whose first answer begins with `good`, so that tests know the order in the store."""
    known: Any = {"origins": (SECRET, f"{SECRET}-worse"), "meta": {"model": SECRET}, **more}
    return [
        pair(f"prompt {n}", f"good {n}", f"poor {n}, and longer", **known) for n in range(count)
    ]


def left_in_the_middle(app: Any, path: str, **headers: str) -> None:
    """Send half of a request to an application, and leave."""
    events = [{"type": "http.request", "body": b'{"a', "more_body": True}]
    received: list[str] = []

    async def receive() -> dict[str, Any]:
        received.append(path)
        return events.pop() if events else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        raise AssertionError(f"nobody waits for {message}")

    known = {"host": ADDRESS.removeprefix("http://"), "content_type": "application/json"}
    pairs_of = {name.replace("_", "-"): value for name, value in {**known, **headers}.items()}
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in pairs_of.items()],
        "scheme": "http",
        "server": ("127.0.0.1", 8765),
        "root_path": "",
    }
    asyncio.run(app(scope, receive, send))
    assert len(received) == 2, "it was refused before its body was read"


@dataclass
class Page:
    """A browser of an annotator, as Starlette's client."""

    client: Any
    csrf: str
    html: str
    guidelines: str

    def post(self, name: str, body: Any, **headers: str) -> Any:
        sent = {"origin": ADDRESS, "x-csrf-token": self.csrf, **headers}
        return self.client.post(f"/api/label/{name}", json=body, headers=sent)

    def next(self) -> dict[str, Any]:
        state: dict[str, Any] = self.post("next", {}).json()
        return state

    def event(
        self, item: dict[str, Any], payload: Any, kind: str = "label", **more: Any
    ) -> dict[str, Any]:
        about = {"item": item["id"], "shown": item["shown"], "guidelines": self.guidelines}
        new = {"uuid": str(uuid.uuid4()), "kind": kind, "payload": payload, "seconds": 2.0}
        return {**about, **new, **more}

    def undo(self, event: str) -> Any:
        return self.post("undo", {"uuid": str(uuid.uuid4()), "of": event})


def application(
    store: Store,
    annotators: Sequence[str] = ("ada",),
    guidelines: str = "",
    qualify: int = 0,
    **more: Any,
) -> tuple[Any, Any]:
    """The application, and its sessions by annotator. more: its address."""
    from alignkit_plugins.people.site import Session, make_app

    sessions = {name: Session(name) for name in annotators}
    if guidelines:
        store.add_guidelines(guidelines)
    return make_app(LabelApi(store, qualify), list(sessions.values()), **more), sessions


def visit(app: Any, sessions: Any, annotator: str = "ada") -> Page:
    """The page, opened with the annotator's link."""
    from starlette.testclient import TestClient

    client = TestClient(app, base_url=ADDRESS)
    html = client.get(f"/?token={sessions[annotator].token}").text
    found = dict(re.findall(r'<meta name="(\w+)" content="([^"]*)">', html))
    return Page(client, found["csrf"], html, found.get("guidelines", ""))


@contextmanager
def served(app: Any) -> Iterator[int]:
    """The application on a port of this machine."""
    server = server_of(app)
    with listening(0) as listener:
        run = threading.Thread(target=server.run, args=([listener],), daemon=True)
        run.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        run.join(PATIENCE)
