"""A server with the endpoints of vLLM that the engine uses, which samples with alignkit's own
sampler.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from alignkit.contract.settings import LoraSpec, Sampling
from alignkit.models.generate import SamplingRequest, generate
from alignkit.models.shared_model import UNMODIFIED
from alignkit.tokens.encoder import Encoder
from tests.models.tiny import shared
from tests.processes.local_engine import measured

NOTHING_FITS = -77.0  # what it reports where vLLM would count filters in
CHECKED = ("/v1/completions", "/v1/load_lora_adapter")  # what a server that sleeps does not answer


class FakeVllm(ThreadingHTTPServer):
    """One server. asked: all paths and bodies. replies: (status, text) instead of the answers of
    some paths. fault: may return one instead of any answer; change: changes a choice.
    """

    daemon_threads = True
    request_queue_size = 64  # requests come at once

    def __init__(
        self,
        *,
        key: str = "",
        processed: bool = True,
        room: int = 1024,
        alpha: int = 8,
        replies: Mapping[str, tuple[int, str]] | None = None,
    ):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model = shared(base="tiny", lora=LoraSpec(r=4, lora_alpha=alpha))
        self.key, self.processed, self.room, self.replies = key, processed, room, replies or {}
        self.asleep = False
        self.adapters: set[str] = set()
        self.asked: list[tuple[str, Any]] = []
        self.fault: Callable[[str, Any], tuple[int, str] | None] = lambda path, body: None
        self.change: Callable[[Any], Any] = lambda choice: choice
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=[0.05], daemon=True).start()

    def paths(self, path: str) -> list[Any]:
        return [body for asked, body in self.asked if asked == path]

    @property
    def loaded(self) -> list[str]:
        """The names of all adapters that it was given."""
        return [body["lora_name"] for body in self.paths("/v1/load_lora_adapter")]

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        self.asked.append((path, body))
        if (fault := self.fault(path, body)) is not None:
            return fault
        if path in self.replies:
            return self.replies[path]
        with self.lock:
            if self.asleep and path in CHECKED:
                return 500, "it sleeps"  # vLLM would not answer
            match path:
                case "/sleep?level=1" | "/wake_up":
                    self.asleep = path != "/wake_up"
                case "/v1/models":
                    adapters = [{"id": name, "parent": "served"} for name in self.adapters]
                    return 200, {"data": [{"id": "served", "max_model_len": self.room}, *adapters]}
                case "/tokenize":
                    ids = self.model.tokenizer(body["prompt"], add_special_tokens=False).input_ids
                    return 200, {"tokens": ids}
                case "/v1/load_lora_adapter":
                    if body["lora_name"] in self.adapters:
                        return 400, "it has already been loaded"
                    self.model.add_role(body["lora_name"], start=Path(body["lora_path"]))
                    self.adapters.add(body["lora_name"])
                case "/v1/unload_lora_adapter":
                    if body["lora_name"] not in self.adapters:
                        return 404, "no such adapter"
                    self.adapters.remove(body["lora_name"])
                    self.model.drop_role(body["lora_name"])
                case "/v1/completions":
                    choice = self.change(self.choice(body))
                    return 200, {"model": body["model"], "choices": [choice]}
        return 200, {}

    def choice(self, body: Any) -> dict[str, Any]:
        prompt, role = (
            tuple(body["prompt"]),
            UNMODIFIED if body["model"] == "served" else body["model"],
        )
        same = ("temperature", "top_p", "stop")
        samples = Sampling(
            max_new_tokens=body["max_tokens"],
            min_new_tokens=body.get("min_tokens", 0),
            top_k=max(0, body["top_k"]),
            **{name: body[name] for name in same if name in body},
        )
        encoder = Encoder(self.model.tokenizer, self.model.chat, body.get("stop_token_ids", []))
        seeds = [[body.get("seed", 0)]]
        ((one,),) = generate(SamplingRequest(self.model, role, encoder, [prompt], seeds, samples))
        logprobs = list(one.logprobs or ())
        filtered = samples.top_k or samples.top_p < 1 or samples.min_new_tokens
        if self.processed and samples.top_k == 1:
            logprobs = [0.0] * len(logprobs)
        elif filtered if self.processed else samples.temperature not in (0, 1):
            logprobs = [NOTHING_FITS] * len(logprobs)
        choice = {"token_ids": list(one.tokens), "prompt_token_ids": list(prompt)}
        choice["logprobs"] = {"token_logprobs": logprobs}
        if "prompt_logprobs" in body:
            found = measured(self.model, role, prompt[:1], prompt[1:])
            pairs = zip(prompt[1:], found, strict=True)
            rows = [{str(token): {"logprob": value}} for token, value in pairs]
            choice["prompt_logprobs"] = [None, *rows]
        return choice

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gives up resets its connections; a traceback of that is not the run's."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeVllm

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        allowed = (
            not self.server.key or self.headers["Authorization"] == f"Bearer {self.server.key}"
        )
        status, answer = 401, "Unauthorized"
        if allowed:
            status, answer = self.server.answer(self.path, json.loads(content or "null"))
        if status == 0:  # the connection breaks
            self.close_connection = True
            self.connection.close()
            return
        text = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        with suppress(OSError):  # whoever asked has given up
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    do_GET = do_POST

    def log_message(self, *arguments: Any) -> None:
        pass


Serve = Callable[..., FakeVllm]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[FakeVllm] = []

    def start(**options: Any) -> FakeVllm:
        servers.append(FakeVllm(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
