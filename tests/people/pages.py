"""A server of the labeling page for tests: as an application, and on a port, in a thread that can
be stopped.
"""

from __future__ import annotations

import re
import socket
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit_plugins.people.items import Item
from alignkit_plugins.people.label_api import LabelApi
from alignkit_plugins.people.store import Store
from tests.patience import PATIENCE
from tests.stores import pair

SECRET = "secret-model-7b"


def pairs(count: int, **more: Any) -> list[Item]:
    """Pairs whose first answer begins with `good`, so that tests know the order in the store."""
    origins = {"origins": (SECRET, f"{SECRET}-worse"), "meta": {"model": SECRET}}
    texts = [(f"prompt {n}", f"good {n}", f"poor {n}, and longer") for n in range(count)]
    return [pair(*each, **{**origins, **more}) for each in texts]


def filled(path: Path, items: Sequence[Item], wanted: int = 1) -> Store:
    """A new store with these items."""
    store = Store.open(path, new=True)
    store.add(items, wanted)
    return store


@dataclass
class Page:
    """A browser of an annotator, as Starlette's client."""

    client: Any
    csrf: str
    html: str
    guidelines: str

    def post(self, name: str, body: Any, **headers: str) -> Any:
        sent = {"origin": "http://127.0.0.1:8765", "x-csrf-token": self.csrf, **headers}
        return self.client.post(f"/api/label/{name}", json=body, headers=sent)

    def next(self) -> dict[str, Any]:
        state: dict[str, Any] = self.post("next", {}).json()
        return state

    def event(
        self, item: dict[str, Any], payload: Any, kind: str = "label", **more: Any
    ) -> dict[str, Any]:
        names = {name: item[name] for name in ("shown",)}
        known = {
            "uuid": str(uuid.uuid4()),
            "kind": kind,
            "item": item["id"],
            "payload": payload,
            "seconds": 2.0,
        }
        return {**known, **names, "guidelines": self.guidelines, **more}


def application(
    store: Store,
    annotators: Sequence[str] = ("ada",),
    guidelines: Path | None = None,
    qualify: int = 0,
    **more: Any,
) -> tuple[Any, Any]:
    """The application, and its sessions by annotator. more: its address."""
    from alignkit_plugins.people.site import Session, make_app

    sessions = {name: Session(name) for name in annotators}
    if guidelines is not None:
        store.add_guidelines(guidelines.read_text(encoding="utf-8"))
    return make_app(LabelApi(store, qualify), list(sessions.values()), **more), sessions


def opened(app: Any, sessions: Any, annotator: str = "ada") -> Page:
    """The page, opened with the annotator's link."""
    from starlette.testclient import TestClient

    client = TestClient(app, base_url="http://127.0.0.1:8765")
    html = client.get(f"/?token={sessions[annotator].token}").text
    found = dict(re.findall(r'<meta name="(\w+)" content="([^"]*)">', html))
    return Page(client, found["csrf"], html, found.get("guidelines", ""))


@contextmanager
def served(app: Any, port: int = 0, host: str = "127.0.0.1") -> Iterator[int]:
    """The application on a port of this machine."""
    import uvicorn

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(100)
    config = uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listener.close()
