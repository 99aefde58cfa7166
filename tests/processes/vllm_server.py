"""A server with the endpoints of vLLM that the engine uses, which samples with alignkit's own
sampler.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from alignkit.data.group import Group
from alignkit.models.generate import Generation, generate
from alignkit.models.packing import measure
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.sampling import Sampling
from alignkit.settings import LoraSpec, ModelSpec
from alignkit.tokens.encoder import Encoded, Encoder, ResponseTokens

NOTHING_FITS = -77.0  # what it reports where vLLM would count filters in


class FakeVllm:
    """One server. asked: all paths and bodies. fault: may return (status, text) instead of an
    answer.
    """

    def __init__(
        self,
        base: Path,
        *,
        key: str = "",
        processed: bool = True,
        lora: bool = True,
        room: int = 1024,
        alpha: int = 8,
    ):
        self._spec = ModelSpec(
            base="tiny", dtype="float32", device="cpu", lora=LoraSpec(r=4, lora_alpha=alpha)
        )
        self.base, self.model = str(base), SharedModel(self._spec, str(base))
        self.key, self.processed, self.lora, self.room = key, processed, lora, room
        self.development, self.asleep = True, False
        self.adapters: dict[str, str] = {}
        self.asked: list[tuple[str, Any]] = []
        self.fault: Callable[[str, Any], tuple[int, str] | None] = lambda path, body: None
        self.change: Callable[[Any], Any] = lambda choice: choice
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def paths(self, path: str) -> list[Any]:
        return [body for asked, body in self.asked if asked == path]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        self.asked.append((path, body))
        if (fault := self.fault(path, body)) is not None:
            return fault
        methods = {"/health": self._health, "/v1/models": self._models, "/tokenize": self._tokenize}
        methods |= {"/v1/completions": self._complete}
        if self.lora:
            methods |= {
                "/v1/load_lora_adapter": self._load,
                "/v1/unload_lora_adapter": self._unload,
            }
        if self.development:
            methods |= {"/sleep?level=1": self._sleep, "/wake_up": self._wake}
        if path not in methods:
            return 404, {"detail": "Not Found"}
        with self._lock:
            if self.asleep and path in ("/v1/completions", "/v1/load_lora_adapter"):
                return 500, "it sleeps"  # vLLM would not answer
            return methods[path](body)

    def _health(self, body: Any) -> tuple[int, Any]:
        return 200, ""

    def _models(self, body: Any) -> tuple[int, Any]:
        found = [{"id": "served", "root": self.base, "max_model_len": self.room, "parent": None}]
        return 200, {
            "data": [*found, *({"id": name, "parent": "served"} for name in self.adapters)]
        }

    def _sleep(self, body: Any) -> tuple[int, Any]:
        self.asleep = True
        return 200, {"status": "sleeping", "level": 1}

    def _wake(self, body: Any) -> tuple[int, Any]:
        self.asleep = False
        return 200, {"status": "awake"}

    def _tokenize(self, body: Any) -> tuple[int, Any]:
        return 200, {
            "tokens": self.model.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]
        }

    def _load(self, body: Any) -> tuple[int, Any]:
        name, folder = body["lora_name"], body["lora_path"]
        if name in self.adapters:
            return 400, {
                "error": {"message": f"The lora adapter '{name}' has already been loaded."}
            }
        if not (Path(folder) / "adapter_model.safetensors").is_file():
            return 404, {
                "error": {"message": f"Loading lora {name} failed: No adapter found for {folder}"}
            }
        self.adapters[name] = folder
        self.model.add_role(name, start=Path(folder))
        return 200, "Success"

    def _unload(self, body: Any) -> tuple[int, Any]:
        if self.adapters.pop(body["lora_name"], None) is None:
            return 404, {"error": {"message": "no such adapter"}}
        self.model.drop_role(body["lora_name"])
        return 200, "Success"

    def _complete(self, body: Any) -> tuple[int, Any]:
        name, prompt = body["model"], tuple(body["prompt"])
        if name != "served" and name not in self.adapters:
            return 404, {"error": {"message": f"The model `{name}` does not exist."}}
        role, top_k = BASE if name == "served" else name, max(0, body["top_k"])
        samples = Sampling(
            max_new_tokens=body["max_tokens"],
            min_new_tokens=body.get("min_tokens", 0),
            temperature=body["temperature"],
            top_p=body.get("top_p", 1.0),
            top_k=top_k,
            stop=body.get("stop", []),
        )
        encoder = Encoder(self.model.tokenizer, self.model.chat, body.get("stop_token_ids", []))
        ((found,),) = generate(
            Generation(self.model, role, encoder, [prompt], [[body.get("seed", 0)]], samples)
        )
        logprobs = list(found.logprobs or ())
        if self.processed and (top_k or samples.top_p < 1 or samples.min_new_tokens):
            logprobs = [0.0 if top_k == 1 else NOTHING_FITS] * len(logprobs)
        elif not self.processed and samples.temperature not in (0, 1):
            logprobs = [NOTHING_FITS] * len(logprobs)
        choice = {"token_ids": list(found.tokens), "prompt_token_ids": list(prompt)}
        choice["logprobs"] = {"token_logprobs": logprobs}
        if "prompt_logprobs" in body:
            rest = ResponseTokens(prompt[1:], (True,) * (len(prompt) - 1))
            (measured,) = measure(self.model, role, [Encoded(Group(()), prompt[:1], (rest,))])[
                "logprobs"
            ]
            pairs = zip(prompt[1:], measured.tolist(), strict=True)
            choice["prompt_logprobs"] = [
                None,
                *({str(token): {"logprob": value}} for token, value in pairs),
            ]
        return 200, {"model": name, "choices": [self.change(choice)]}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # requests come at once

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gives up resets its connections; a traceback of that is not the run's."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _handler(fake: FakeVllm) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if (
                fake.key
                and self.path.startswith("/v1/")
                and self.headers["Authorization"] != f"Bearer {fake.key}"
            ):
                status, answer = 401, {"error": "Unauthorized"}
            else:
                status, answer = fake.answer(self.path, json.loads(content) if content else None)
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

        def log_message(self, *arguments: Any) -> None:
            pass

    return Handler
