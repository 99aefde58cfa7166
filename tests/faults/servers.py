"""Servers of judges and rewards that fail in the middle of their work: bounded time, no score made
up, no reply lost.

`python -m tests.faults.servers` prints what became of every kind of fault. A server replies well
twice, then fails in one way. Afterwards it is healed, and the same questions are asked again: all
replies must be right, and none may have been paid for twice.
"""

from __future__ import annotations

import gzip
import json
import math
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

import typer

from alignkit.errors import AlignkitError, request_stop, stoppable
from tests.faults.case import HELD, HUNG, LOST, SILENT, UNTIDY, Case
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
    asked to stop meanwhile.
    """

    name: str
    act: Act | None = None
    look: Callable[[], None] | None = None
    after: Callable[[ScriptedServer], None] | None = None
    judge: str = STOPPED
    reward: str = STOPPED
    kept: tuple[str, ...] = ()
    stalls: bool = False
    https: bool = False


def _status(code: int, **headers: str) -> Act:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda server, connection, body: reply(connection, b'{"error": "no"}', code, named)


def _late(server: ScriptedServer, connection: socket.socket, body: Any) -> None:
    date = formatdate(time.time() + 3600, usegmt=True)
    reply(connection, b"{}", 429, {"Retry-After": date})


def _body(text: bytes, **headers: str) -> Act:
    return lambda server, connection, body: reply(
        connection, text, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )


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
FAULTS = (
    Fault("refused", after=lambda server: server.close()),
    Fault("name not found", look=_unknown),
    Fault("connection stalls", after=lambda server: server.hold(), stalls=True),
    Fault("accepts, then stalls", _stall, stalls=True),
    Fault("a byte at a time", _drip, judge=RIGHT, reward=RIGHT),
    Fault("hangs up", lambda server, connection, body: None),
    Fault("401", _status(401), judge=AT_ONCE, reward=AT_ONCE),
    Fault("403", _status(403), judge=AT_ONCE, reward=AT_ONCE),
    Fault("404", _status(404), judge=AT_ONCE, reward=AT_ONCE),
    Fault("408", _status(408)),
    Fault("429", _status(429)),
    Fault(
        "429, Retry-After in seconds",
        _status(429, Retry_After="3600"),
        judge=AT_ONCE,
        reward=AT_ONCE,
    ),
    Fault("429, Retry-After as a date", _late, judge=AT_ONCE, reward=AT_ONCE),
    Fault("429, Retry-After of 2 s", _status(429, Retry_After="2"), stalls=True),
    Fault("500", _status(500)),
    Fault("502", _status(502)),
    Fault("503", _status(503)),
    Fault("504", _status(504)),
    Fault("400", _status(400), judge=MISSING, reward=MISSING),
    Fault("204", _status(204), judge=MISSING),
    Fault("empty", _body(b""), judge=MISSING),
    Fault("truncated JSON", _truncated, judge=MISSING),
    Fault("cut off", _cut),
    Fault(
        "HTML with 200",
        _body(b"<html>busy</html>", Content_Type="text/html"),
        judge=MISSING,
    ),
    Fault("wrong type", _body(b'[["1"]]'), judge=MISSING),
    Fault("NaN", _changed("nan"), judge=MISSING),
    Fault("Infinity", _changed("infinity"), judge=MISSING),
    Fault("number as text", _changed("text"), judge=MISSING),
    Fault("out of range", _changed("range"), judge=MISSING),
    Fault("wrong count", _changed("count"), judge=MISSING),
    Fault("duplicated ids", _changed("duplicated"), judge=MISSING),
    Fault("shuffled ids", _changed("shuffled"), judge=RIGHT, reward=RIGHT),
    Fault("50 MB", _huge, judge=MISSING),
    Fault("gzip bomb", _body(BOMB, Content_Encoding="gzip"), judge=MISSING),
    Fault("redirect loop", _loop, judge=AT_ONCE, reward=AT_ONCE),
    Fault(
        "redirect to 169.254.169.254",
        _status(302, Location="http://169.254.169.254/"),
        judge=AT_ONCE,
        reward=AT_ONCE,
    ),
    Fault("bad TLS", https=True),
    Fault("refusal", _changed("refusal"), judge=MISSING, reward=MISSING, kept=("judge", "reward")),
    Fault("unparsable", _changed("unparsable"), judge=MISSING, kept=("judge",)),
    Fault("injected verdict", _changed("injected"), judge=MISSING, kept=("judge",)),
)


@dataclass(frozen=True)
class Found:
    """What became of a fault. seconds: until the client ended. problem: what was wrong with that;
    empty if nothing.
    """

    ending: str
    seconds: float
    requests: int
    text: str
    outcome: str = HELD
    problem: str = ""


def tried(fault: Fault, client: Client, folder: Path) -> Found:
    """Inject a fault, heal the server, and ask again."""
    right = client.truth()
    with _server(fault, client) as (server, url):
        began = time.monotonic()
        ending, text = _ending(
            client, url, folder, right, timeout=1.0 if fault.stalls or fault.https else DEADLINE
        )
        seconds, requests = time.monotonic() - began, server.requests
        if (
            ending == STOPPED
            and requests <= server.healthy + 1
            and not fault.look
            and not fault.after
        ):
            ending = STOPPED if fault.https else AT_ONCE
        expected = fault.judge if client.name == "judge" else fault.reward
        found = Found(ending, seconds, requests, text)
        if seconds > DEADLINE + 5:
            return Found(ending, seconds, requests, text, HUNG, f"took {seconds:.1f} s")
        if ending != expected:
            outcome = SILENT if ending in (MISSING, RIGHT) else UNTIDY
            return Found(ending, seconds, requests, text, outcome, f"expected: {expected}")
        if server.elsewhere:
            return Found(ending, seconds, requests, text, SILENT, "followed a redirect")
        server.heal()
        again, said = _ending(client, url.replace("https:", "http:"), folder, right)
        twice = [body for body, count in server.paid.items() if count > 1]
    if again != (MISSING if client.name in fault.kept else RIGHT) or twice:
        problem = f"asked again: {again}, {len(twice)} replies paid for twice; {said}"
        return Found(ending, seconds, requests, text, LOST, problem)
    return found


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


def cases() -> list[Case]:
    """All faults with all clients."""
    return [
        Case("server", f"{fault.name}, {client.name}", _case(fault, client))
        for fault in FAULTS
        for client in CLIENTS.values()
    ]


def _case(fault: Fault, client: Client) -> Callable[[Path], tuple[str, str]]:
    def run(folder: Path) -> tuple[str, str]:
        found = tried(fault, client, folder)
        return found.outcome, f"{found.problem}\n{found.text}"

    return run


app = typer.Typer(add_completion=False)


@app.command()
def main() -> None:
    """Print what becomes of each fault. Exits with 1 if one does not end as it should."""
    print(
        "| fault | judge | s | requests | reward over HTTP | s | requests |\n"
        "|---|---|---|---|---|---|---|"
    )
    bad: list[str] = []
    for fault in FAULTS:
        row = [fault.name]
        for client in CLIENTS.values():
            with tempfile.TemporaryDirectory() as folder:
                found = tried(fault, client, Path(folder))
            row += [found.ending, f"{found.seconds:.1f}", str(found.requests)]
            bad += (
                [f"{fault.name}, {client.name}: {found.outcome}: {found.problem}\n{found.text}"]
                if found.problem
                else []
            )
        print(f"| {' | '.join(row)} |", flush=True)
    print("\n".join([f"\n{len(bad)} did not end as they should", *bad]), file=sys.stderr)
    raise typer.Exit(1 if bad else 0)


if __name__ == "__main__":
    app()
