"""A server on a run with the tiny model, and a client that is no library."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE


@dataclass
class Server:
    """A server in this process. collection: what it keeps of users who agreed."""

    port: int
    endpoint: Any
    opened: Any
    collection: Any

    def send(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        given = {"Content-Type": "application/json"} if data is not None else {}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, data, given)
        return connection, connection.getresponse()

    def ask(
        self, path: str, body: Any = None, method: str = "POST", **headers: str
    ) -> tuple[int, Any]:
        """The status and the JSON of a reply."""
        connection, response = self.send(method, path, body, **headers)
        try:
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def chat(self, text: str | list[Any] = "bread is good", **keys: Any) -> Any:
        messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
        status, reply = self.ask(
            "/v1/chat/completions", {"model": "run-online", "messages": messages, **keys}
        )
        assert status == 200, reply
        return reply

    def stream(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The chunks of a stream."""
        connection, response = self.send("POST", path, {**body, "stream": True})
        text = response.read().decode()
        connection.close()
        assert response.status == 200, text
        assert response.headers["Content-Type"].startswith("text/event-stream")
        events = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
        assert events.pop() == "[DONE]"
        return [json.loads(event) for event in events]


@pytest.fixture(scope="session")
def server(house_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of two policies, which keeps what users agree to."""
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    from alignkit.io.console import Reporter
    from alignkit_plugins.command_line.words import read_words
    from alignkit_plugins.people.collection import Collection
    from alignkit_plugins.servers.server import Address, listening, server_of
    from alignkit_plugins.serving.policy import opened
    from alignkit_plugins.serving.serve_app import Endpoint

    collection = Collection(tmp_path_factory.mktemp("served") / "users.feedback", "CC0-1.0")
    named = read_words([f"{house_run}/online", f"{house_run}/base"])
    with (
        listening(0) as listener,
        opened(named, (), Reporter(), lambda: None, "alignkit serve") as models,
    ):
        endpoint = Endpoint(models.policies, collection)
        live = server_of(endpoint.application(Address(), None))
        endpoint.stopping = lambda: live.should_exit
        thread = threading.Thread(target=live.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield Server(listener.getsockname()[1], endpoint, models, collection)
        live.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()
        endpoint.model.shutdown()
    collection.close()
