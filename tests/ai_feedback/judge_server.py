"""Judges for tests: a loopback server whose replies are scripted, and a judge that says what it is told."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from alignkit import Group, Judge, Rating, StepContext, Verdict
from alignkit.host.judges import CheckedJudge
from alignkit.host.registry import Component, Registration
from alignkit_plugins.ai_feedback import writer as remote
from alignkit_plugins.ai_feedback.judge import OpenAIJudge
from tests.patience import PATIENCE, impatient


@dataclasses.dataclass
class Reply:
    """What the loopback server does with a request.

    until: what it waits for, and then for `pause` seconds.
    """

    status: int = 200
    body: Any = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    pause: float = 0.0
    until: Callable[[], bool] = lambda: True


class Server:
    """A loopback server whose `script` holds the next replies; afterwards `judge` answers."""

    def __init__(
        self, judge: Callable[[dict[str, Any]], Reply] = lambda request: Reply(500)
    ) -> None:
        self.script: list[Reply] = []
        self.judge = judge
        self.requests: list[dict[str, Any]] = []
        self.authorization: list[str | None] = []
        self.open = self.most_open = 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.requests.append(request)
                    server.authorization.append(self.headers.get("Authorization"))
                    server.open += 1
                    server.most_open = max(server.most_open, server.open)
                    reply = server.script.pop(0) if server.script else server.judge(request)
                try:
                    limit = time.monotonic() + PATIENCE
                    while not reply.until() and time.monotonic() < limit:
                        time.sleep(0.001)
                    time.sleep(reply.pause)
                finally:
                    with server.lock:
                        server.open -= 1
                self.answer(reply)

            def answer(self, reply: Reply) -> None:
                body = (
                    reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                )
                try:
                    self.send_response(reply.status)
                    for name, value in {"Content-Length": len(body), **reply.headers}.items():
                        self.send_header(name, str(value))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    pass  # the client has hung up, as some tests want it to

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()


@contextlib.contextmanager
def serving(judge: Callable[[dict[str, Any]], Reply]) -> Iterator[Server]:
    """A server that answers as `judge` says, and is soon asked again."""
    running = Server(judge)
    try:
        with impatient():
            yield running
    finally:
        running.http.shutdown()
        running.http.server_close()


def options_of(url: str, **options: Any) -> OpenAIJudge.Options:
    """Options of `openai_judge`: its own, and those of its server."""
    where = {name: options.pop(name) for name in [*options] if name in remote.Server.model_fields}
    return OpenAIJudge.Options(server={"base_url": url, "model": "m"} | where, **options)


# Where judges are asked


def context(
    folder: Path, models: Any = None, groups: Sequence[Group] | None = None, **more: Any
) -> StepContext:
    """Around a judge, a reward or a step; its data are `groups`, or what it asks for."""
    return StepContext(
        models=models,
        cache=folder / "cache",
        folder=folder,
        out=folder / "out",
        load=lambda ref: list(ref if groups is None else groups),
        **{"seed": 7, "scorer": None, "map": lambda name, rows, f: list(f(rows)) if rows else []}
        | more,
        log=lambda **values: None,
        say=lambda line: None,
    )


def component(kind: Any, options: Any = None, name: str = "x") -> Any:
    """What a JudgeRef option holds after validation."""
    return Component("judge", name, Registration(name, kind, plugin="x"), options)


def checked(folder: Path, kind: Any, options: Any, models: Any = None) -> CheckedJudge:
    return CheckedJudge(component(kind, options), context(folder, models))


@dataclasses.dataclass
class Script:
    """What a judge says of (prompt, first, second) and of (prompt, response), by a rubric.

    compare: a verdict, or P(first is better) in both orders. rate: a score. asked:
    the rubrics and items of each call.
    """

    compare: Callable[[Any, Any], Verdict | float] = lambda item, rubric: 0.5
    rate: Callable[[Any, Any], float | None] = lambda item, rubric: None
    scale: tuple[float, float] | None = None
    asked: list[tuple[Any, list[Any]]] = dataclasses.field(default_factory=list)


class Told(Judge):
    """Says what its script says."""

    compares_by_rubric = True

    @property
    def scale(self) -> Any:
        return self.options.scale

    def compare(self, items: Any, rubric: Any = "") -> list[Verdict]:
        self.options.asked.append((rubric, list(items)))
        return [self._verdict(self.options.compare(item, rubric)) for item in items]

    def rate(self, items: Any, rubric: Any = "") -> list[Rating]:
        self.options.asked.append((rubric, list(items)))
        return [self._rating(self.options.rate(item, rubric)) for item in items]

    def _verdict(self, said: Verdict | float) -> Verdict:
        return (
            said if isinstance(said, Verdict) else Verdict(said, (said, said), calls=2, tokens=50)
        )

    def _rating(self, score: float | None) -> Rating:
        return Rating(score, "the judge refused" if score is None else "", calls=1, tokens=7)


def in_turn(*verdicts: Verdict | float) -> Any:
    """A judge that gives these verdicts, one after the other."""
    left = list(verdicts)
    return component(Told, Script(compare=lambda item, rubric: left.pop(0)))


REFUSED = Verdict(None, reason="the judge refused: no", calls=2)


# A judge that thinks

FENCED = re.compile(r"\[begin (\w{16})\]\n(.*?)\n\[end \1\]", re.DOTALL)
LINE = re.compile(r"^(Verdict|Rating) (\w{8}): X$", re.MULTILINE)
KEYS = re.compile(r'"code", the text "(\w{8})", and "(\w+)"')


def texts_of(request: dict[str, Any]) -> list[str]:
    """The texts that a question shows: the conversation first."""
    return [text for _, text in FENCED.findall(request["messages"][-1]["content"])]


def asked_for(request: dict[str, Any]) -> tuple[str, str]:
    """The word and the code that the reply has to end with."""
    content = request["messages"][-1]["content"]
    if keys := KEYS.search(content):
        return keys[2].capitalize(), keys[1]
    found = LINE.findall(content)
    assert len(found) == 1
    word, code = found[0]
    return word, code


def quality(text: str) -> float:
    """What the scripted judge thinks of a text: its last number."""
    return float(re.findall(r"-?\d+\.?\d*", text)[-1])


def opinion(request: dict[str, Any]) -> str:
    """What it says of the texts: the greater number is better, and a number is its own rating."""
    _, *texts = texts_of(request)
    word, _ = asked_for(request)
    values = [quality(text) for text in texts]
    if word == "Verdict":
        return "tie" if values[0] == values[1] else "1" if values[0] > values[1] else "2"
    return ", ".join(f"{value:g}" for value in values)


def said(content: str | None, finish: str = "stop", **more: Any) -> Reply:
    """A completion with these words; one that is cut off has all tokens that judges allow by
    default.
    """
    written = 2000 if finish == "length" else 40
    usage = {"prompt_tokens": 100, "completion_tokens": written, "total_tokens": 100 + written}
    message = {"role": "assistant", "content": content, **more}
    return Reply(body={"choices": [{"message": message, "finish_reason": finish}], "usage": usage})


def one_token(p: float, **choice: Any) -> Reply:
    """A completion whose likeliest tokens say that the first is better with this probability, of
    0.9 together.
    """
    tops = [{"token": "1", "logprob": math.log(0.9 * p)}]
    tops.append({"token": "2", "logprob": math.log(0.9 * (1 - p))})
    return Reply(body={"choices": [{"logprobs": {"content": [{"top_logprobs": tops}]}, **choice}]})


def words_of(request: dict[str, Any]) -> str:
    """Reasons, then the line."""
    word, code = asked_for(request)
    return f"I compare them.\n\n{word} {code}: {opinion(request)}"


def thinking(request: dict[str, Any]) -> Reply:
    return said(words_of(request))
