"""Runs to export from, a server on a run with the tiny model, and a client that is no library."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from exported import train

from alignkit import Group, Message, Response
from alignkit.cli import main
from alignkit.data.group import write_groups
from tests.patience import PATIENCE

WORDS = ("bread is good", "my old friend", "the people in this house")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, _cache: None) -> Path:
    """A run with a policy, a reward model, and a policy that learned from its own samples."""
    folder = tmp_path_factory.mktemp("served")
    write_groups(
        folder / "demos.jsonl",
        [Group((Message(role="user", content=w),), (Response(text=w[::-1]),)) for w in WORDS],
    )
    both = (Response(text="good bread", rank=0), Response(text="no", rank=1))
    write_groups(
        folder / "pairs.jsonl", [Group((Message(role="user", content=w),), both) for w in WORDS]
    )
    common = {"learning_rate": 0.02, "batch_size": 1}
    rollout = {"max_new_tokens": 24, "samples_per_prompt": 2, "temperature": 0.9}
    stages = {
        "sft": {"algorithm": "sft", "data": "demos.jsonl", "max_steps": 2, **common},
        "liked": {"algorithm": "reward_model", "data": "pairs.jsonl", "max_steps": 1, **common},
        "online": {
            "algorithm": "rloo",
            "prompts": "demos.jsonl",
            "reward": "liked",
            "rollout": rollout,
        }
        | {"iterations": 1, "prompts_per_iteration": 2, **common},
    }
    recipe = {"model": {"base": "tiny", "dtype": "float32", "lora": {"r": 4}}, "stages": stages}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["run", str(folder / "recipe.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


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

    def begin(self, path: str, body: Any, *more: str) -> socket.socket:
        """Send a request, and do not wait for its answer. more: headers."""
        data = json.dumps(body).encode()
        connection = socket.create_connection(("127.0.0.1", self.port))
        lines = (
            f"POST {path} HTTP/1.1",
            "Host: localhost",
            "Content-Type: application/json",
            *more,
        )
        connection.sendall(
            "\r\n".join([*lines, f"Content-Length: {len(data)}", "", ""]).encode() + data
        )
        return connection

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
def server(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of two policies, which keeps what users agree to."""
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    from alignkit.io.console import Reporter
    from alignkit_plugins.people.collection import Collection
    from alignkit_plugins.people.server import Address, listening, server_of
    from alignkit_plugins.policies.policy import opened
    from alignkit_plugins.policies.serve_app import Endpoint
    from alignkit_plugins.policies.words import read_words

    collection = Collection(tmp_path_factory.mktemp("served") / "users.feedback", "CC0-1.0")
    named = read_words([str(run / "online"), str(run / "base")])
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


@pytest.fixture(scope="session")
def lora_run(tmp_path_factory: pytest.TempPathFactory, _cache: None) -> Path:
    """A run with adapters."""
    return train(tmp_path_factory.mktemp("lora"), {"lora": {"r": 4, "lora_alpha": 8}})


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory, _cache: None) -> Path:
    """A run that trains all weights."""
    return train(tmp_path_factory.mktemp("whole"), {"lora": "none"})
