"""Servers of judges and rewards that fail in the middle of their work: bounded time, no score made
up, no reply lost.

A server replies well twice, then fails in one way. Afterwards it is healed, and the same questions
are asked again: all replies must be right, and none may have been paid for twice.
"""

from __future__ import annotations

import gzip
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

from alignkit.errors import AlignkitError, request_stop, stoppable
from tests.faults.clients import CLIENTS, Client
from tests.faults.scripted_server import NAME, Act, ScriptedServer, reply

STOPPED, AT_ONCE, MISSING, RIGHT = "stopped", "stopped at once", "missing", "right"
DEADLINE = 60.0  # seconds for a request, and for all until the client ends
FOREVER = 600.0  # seconds


@dataclass(frozen=True)
class Fault:
    """act, look, after: see ScriptedServer. judge, reward: what must become of their questions.

    right: the replies are right. missing: they have no score. stopped: the run ends with exit code
    6; at once: without a second try. kept: the clients for which such a reply is an answer, which
    is stored and not asked for again. stalls: nothing happens for a while, so that the run may be
    asked to stop meanwhile. quick: whether it takes no time.
    """

    name: str
    act: Act | None = None
    judge: str = STOPPED
    reward: str = STOPPED
    look: Callable[[], None] | None = None
    after: Callable[[ScriptedServer], None] | None = None
    kept: tuple[str, ...] = ()
    stalls: bool = False
    https: bool = False
    quick: bool = True


def _status(code: int, **headers: str) -> Act:
    return _body(b'{"error": "no"}', code, **headers)


def _late(server: ScriptedServer, connection: socket.socket, body: Any) -> None:
    date = formatdate(time.time() + 3600, usegmt=True)
    reply(connection, b"{}", 429, {"Retry-After": date})


def _body(text: bytes, code: int = 200, **headers: str) -> Act:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda server, connection, body: reply(connection, text, code, named)


def _stall(server: ScriptedServer, connection: socket.socket, body: Any) -> None:
    connection.recv(1)  # until the client hangs up


def _good(server: ScriptedServer, body: Any) -> bytes:
    return json.dumps(server.good(body)).encode()


def _drip(server: ScriptedServer, connection: socket.socket, body: Any) -> None:
    reply(connection, _good(server, body), pause=0.05)


def _truncated(server: ScriptedServer, connection: socket.socket, body: Any) -> None:
    reply(connection, _good(server, body)[:-9])


def _cut(server: ScriptedServer, connection: socket.socket, body: Any) -> None:
    text = _good(server, body)
    reply(connection, text[:-9], length=len(text))


def _huge(server: ScriptedServer, connection: socket.socket, body: Any) -> None:
    reply(connection, b" " * (1 << 20), length=50 << 20)
    for _ in range(49):
        connection.sendall(b" " * (1 << 20))


def _loop(server: ScriptedServer, connection: socket.socket, body: Any) -> None:
    reply(connection, b"", 307, {"Location": f"http://127.0.0.1:{server.port}/again"})


def _changed(kind: str) -> Act:
    """A good reply with one thing changed, as each client's server would do it."""

    def act(server: ScriptedServer, connection: socket.socket, body: Any) -> None:
        change = CLIENTS["judge" if "messages" in body else "reward"].change
        reply(connection, json.dumps(change(kind, body, server.good(body))).encode())

    return act


def _unknown() -> None:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


BOMB = gzip.compress(b" " * (50 << 20))
METADATA = "http://169.254.169.254/"
FAULTS = (
    Fault("refused", after=lambda server: server.close()),
    Fault("name not found", look=_unknown),
    Fault("connection stalls", after=lambda server: server.hold(), stalls=True, quick=False),
    Fault("accepts, then stalls", _stall, stalls=True, quick=False),
    Fault("hangs up", lambda server, connection, body: None),
    Fault("cut off", _cut),
    Fault("bad TLS", https=True, quick=False),
    *(Fault(str(code), _status(code)) for code in (408, 429, 500, 502, 503, 504)),
    *(Fault(str(code), _status(code), AT_ONCE, AT_ONCE) for code in (401, 403, 404)),
    Fault("429, Retry-After in seconds", _status(429, Retry_After="3600"), AT_ONCE, AT_ONCE),
    Fault("429, Retry-After as a date", _late, AT_ONCE, AT_ONCE),
    Fault("429, Retry-After of 2 s", _status(429, Retry_After="2"), stalls=True, quick=False),
    Fault("redirect loop", _loop, AT_ONCE, AT_ONCE),
    Fault("redirect to the cloud", _status(302, Location=METADATA), AT_ONCE, AT_ONCE),
    Fault("400", _status(400), MISSING, MISSING),
    Fault("204", _status(204), MISSING),
    Fault("empty", _body(b""), MISSING),
    Fault("truncated JSON", _truncated, MISSING),
    Fault("HTML with 200", _body(b"<html>busy</html>", Content_Type="text/html"), MISSING),
    Fault("wrong type", _body(b'[["1"]]'), MISSING),
    *(
        Fault(kind, _changed(kind), MISSING)
        for kind in ("nan", "infinity", "text", "range", "count", "duplicated")
    ),
    *(Fault(kind, _changed(kind), MISSING, kept=("judge",)) for kind in ("unparsable", "injected")),
    Fault("refusal", _changed("refusal"), MISSING, MISSING, kept=("judge", "reward")),
    Fault("shuffled", _changed("shuffled"), RIGHT, RIGHT),
    Fault("a byte at a time", _drip, RIGHT, RIGHT, quick=False),
    Fault("50 MB", _huge, MISSING, quick=False),
    Fault("gzip bomb", _body(BOMB, Content_Encoding="gzip"), MISSING, quick=False),
)


def tried(fault: Fault, client: Client, folder: Path) -> str:
    """Inject a fault, heal the server, and ask again. What was wrong; empty if nothing."""
    right = client.truth()
    with _server(fault, client) as (server, url):
        began = time.monotonic()
        timeout = 1.0 if fault.stalls or fault.https else DEADLINE
        ending, text = _ending(client, url, folder, right, timeout)
        seconds, tries = time.monotonic() - began, server.requests - server.healthy
        if ending == STOPPED and tries <= 1 and not (fault.look or fault.after or fault.https):
            ending = AT_ONCE
        expected = fault.judge if client.name == "judge" else fault.reward
        if ending != expected or server.elsewhere or seconds > DEADLINE + 5:
            return f"{ending}, not {expected}; {server.elsewhere} redirects; {seconds} s: {text}"
        server.heal()
        again, said = _ending(client, url.replace("https:", "http:"), folder, right)
        twice = [body for body, count in server.paid.items() if count > 1]
    if again != (MISSING if client.name in fault.kept else RIGHT) or twice:
        return f"asked again: {again}, {len(twice)} replies paid for twice: {said}"
    return ""


def stopped_after(fault: Fault, client: Client, folder: Path, wait: float = 0.3) -> int:
    """Ask a run to stop while a fault lasts, and return its exit code."""
    with _server(fault, client) as (server, url), stoppable():

        def ask() -> None:
            while not server.failing:
                time.sleep(0.01)
            time.sleep(wait)
            request_stop("SIGTERM")

        threading.Thread(target=ask, daemon=True).start()
        try:
            client.ask(url, folder, timeout_seconds=FOREVER)
        except AlignkitError as error:
            return error.exit_code
        return 0


@contextmanager
def _server(fault: Fault, client: Client) -> Iterator[tuple[ScriptedServer, str]]:
    server = ScriptedServer(client.good, fault.act, fault.look, fault.after)
    try:
        with server.named():
            host = NAME if fault.look else "127.0.0.1"
            yield server, f"{'https' if fault.https else 'http'}://{host}:{server.port}/v1"
    finally:
        server.heal()
        server.close()


def _ending(
    client: Client, url: str, folder: Path, right: Sequence[float], timeout: float = DEADLINE
) -> tuple[str, str]:
    """How the client's questions end, and in which words."""
    try:
        found = client.ask(url, folder, timeout_seconds=timeout)
    except AlignkitError as error:
        return (STOPPED if error.exit_code == 6 else f"exit code {error.exit_code}"), str(error)
    known = [(a, b) for a, b in zip(found, right, strict=True) if a is not None]
    if any(not math.isclose(a, b, rel_tol=1e-9) for a, b in known):
        return "wrong", f"{found} instead of {right}"
    return (RIGHT if len(known) == len(right) else MISSING), str(found)
