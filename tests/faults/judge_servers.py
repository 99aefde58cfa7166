"""Servers that answer a judge's questions with anything: no label is made of it, and the wait has
an end.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.faults.case import Case, must_refuse, refused

TOP = [{"token": "1", "logprob": -0.1}, {"token": "2", "logprob": -3.0}]
GOOD = {
    "choices": [
        {
            "message": {"content": "1"},
            "logprobs": {"content": [{"token": "1", "top_logprobs": TOP}]},
        }
    ]
}
STATUSES = (
    200,
    201,
    204,
    301,
    302,
    400,
    401,
    403,
    404,
    408,
    413,
    418,
    429,
    500,
    502,
    503,
    504,
    599,
)
BODIES = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b"0",
    b'"1"',
    b"\x00",
    b"\xff\xfe",
    b"<html>busy</html>",
    b"[" * 100_000,
    b"{" * 5000,
    b'{"choices": null}',
    b'{"choices": []}',
    b'{"choices": [null]}',
    b'{"choices": [{}]}',
    b'{"choices": {"0": 1}}',
    b'{"choices": [{"message": null}]}',
    b'{"choices": [{"message": {"content": null}}]}',
    b'{"error": "no"}',
    b'{"choices": [{"message": {"content": "1"}, "logprobs": {"content": [{"top_logprobs": "x"}]}}]}',
    b'{"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": 1, "logprob": 1e999}]}]}}]}',
    b'{"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": "1", "logprob": NaN}]}]}}]}',
    b'{"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": "x", "logprob": -1}]}]}}]}',
    b'{"error": {"message": "\\u001b[31mred\\u0007"}}',
    b"x" * (3 << 20),
    b'{"a": ' + b"9" * 100_000 + b"}",
]
MUTATED = 200


@dataclass(frozen=True)
class Answer:
    """What the server sends. cut: it promises more bytes than it sends."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    cut: bool = False


HEADERS = (
    ("Location", "http://169.254.169.254/latest/meta-data"),
    ("Location", "/v1/chat/completions"),
    ("Retry-After", "1e300"),
    ("Retry-After", "-1"),
    ("Content-Encoding", "gzip"),
    ("Content-Type", "text/html; charset=no-such"),
    ("Set-Cookie", "a=" + "b" * 3000),
)


def cases(recipe: Path) -> list[Case]:
    """Statuses, bodies and headers, and good replies with something changed."""
    bad = [Answer(status, body) for status in (200, 500) for body in BODIES]
    bad += [Answer(status, json.dumps(GOOD).encode()) for status in STATUSES if status >= 300]
    bad += [Answer(status, b"{}", (header,)) for status in (200, 302, 429) for header in HEADERS]
    bad += [Answer(200, json.dumps(GOOD).encode(), cut=True), Answer(200, b"", cut=True)]
    never = [
        Case("judge", f"{a.status} {a.body[:40]!r} {a.headers}", _asked(recipe, a, must_refuse))
        for a in bad
    ]
    maybe = [
        Case("judge", f"mutated: {body!r:.60}", _asked(recipe, Answer(200, body), refused))
        for body in _mutated()
    ]
    return never + maybe


def _mutated() -> list[bytes]:
    chance, found = random.Random(3), []
    good = json.dumps(GOOD).encode()
    for _ in range(MUTATED):
        data = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            place = chance.randrange(len(data))
            if chance.random() < 0.5:
                data[place] = chance.randrange(32, 127)
            else:
                del data[place : place + chance.randrange(1, 12)]
        found.append(bytes(data))
    return found


def _asked(
    recipe: Path, answer: Answer, judged: Callable[[list[str]], tuple[str, str]]
) -> Callable[[Path], tuple[str, str]]:
    def run(folder: Path) -> tuple[str, str]:
        with ThreadingHTTPServer(("127.0.0.1", 0), _handler(answer)) as server:
            server.daemon_threads = True
            threading.Thread(
                target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
            ).start()
            try:
                return judged(
                    [
                        "run",
                        str(_recipe(folder, recipe, server.server_port)),
                        "--out",
                        str(folder / "o"),
                    ]
                )
            finally:
                server.shutdown()

    return run


def _recipe(folder: Path, recipe: Path, port: int) -> Path:
    os.environ["FAULTS_JUDGE_KEY"] = "none"
    options = {
        "base_url": f"http://127.0.0.1:{port}/v1",
        "model": "m",
        "api_key_env": "FAULTS_JUDGE_KEY",
        "max_retries": 1,
        "timeout_seconds": 2,
    }
    data = str(recipe.parent / "pairs.jsonl")
    labels: dict[str, Any] = {
        "step": "judge_pairs",
        "judge": {"openai_judge": {"server": options}},
        "data": data,
    }
    path = folder / "r.json"
    path.write_text(
        json.dumps({"model": {"base": "tiny"}, "stages": {"labels": labels}}), encoding="utf-8"
    )
    return path


def _handler(answer: Answer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer()

        def do_GET(self) -> None:  # after a redirect
            self.answer()

        def answer(self) -> None:
            try:
                self.send_response(answer.status)
                for name, value in answer.headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body) + 100 * answer.cut))
                self.end_headers()
                self.wfile.write(answer.body)
            except OSError:
                self.close_connection = True  # the client has hung up

        def log_message(self, format: str, *values: Any) -> None:
            pass

    return Handler
