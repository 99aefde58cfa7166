"""Judges and rewards on servers that fail: bounded time, nothing paid for twice, no score made up,
a stop obeyed.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignkit.errors import RemoteError, Stopped, request_stop, stoppable
from alignkit_plugins.ai_feedback import remote as asking
from alignkit_plugins.ai_feedback.remote import Remote, RemoteOptions
from tests.faults.clients import CLIENTS, Client
from tests.faults.scripted_server import ScriptedServer, reply
from tests.faults.servers import FAULTS, Fault, stopped_after, tried
from tests.patience import PATIENCE, impatient
from tests.rows import run, write_recipe

STALLS = [fault for fault in FAULTS if fault.stalls]
BY_NAME = {fault.name: fault for fault in FAULTS}


def cases(faults: Any, quick: Any) -> list[Any]:
    """Each fault with each client."""
    return [
        pytest.param(fault, client, marks=() if quick(fault) else pytest.mark.slow)
        for fault in faults
        for client in CLIENTS.values()
    ]


@pytest.mark.parametrize(("fault", "client"), cases(FAULTS, lambda fault: fault.quick))
def test_a_fault_ends_as_it_should_and_can_be_resumed(
    fault: Fault, client: Client, tmp_path: Path
) -> None:
    assert tried(fault, client, tmp_path) == ""


@pytest.mark.parametrize(("fault", "client"), cases(STALLS, lambda fault: "429" in fault.name))
def test_a_stop_is_obeyed_while_a_server_stalls(
    fault: Fault, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "LAST_SECONDS", 0.5)
    # And not when the server has stalled for ten minutes
    assert stopped_after(fault, client, tmp_path) == 75


# Replies that are under way


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    running = ScriptedServer(lambda body: {"number": body["n"]}, healthy=0)
    with impatient():
        yield running
    running.close()


def service(server: ScriptedServer, folder: Path, **options: Any) -> Remote:
    url = f"http://127.0.0.1:{server.port}/v1"
    settings = {"base_url": url, "max_retries": 0} | options
    read = lambda text: json.loads(text)["number"]  # noqa: E731
    return Remote("mine", RemoteOptions(**settings), "score", folder, read)


BODIES = [{"n": n} for n in range(4)]


@pytest.mark.parametrize("ending", ["failure", "stop"])
def test_replies_under_way_are_waited_for_and_not_paid_for_twice(
    ending: str, server: ScriptedServer, tmp_path: Path
) -> None:
    slow = threading.Barrier(4)

    def act(server: ScriptedServer, connection: socket.socket, body: Any) -> None:
        slow.wait(5)  # until all four are under way
        if body["n"] == 0 and ending == "failure":
            return reply(connection, b"", 401)
        if body["n"] == 0:
            request_stop("SIGTERM")
        time.sleep(0.6)
        return reply(connection, json.dumps({"number": body["n"]}).encode())

    server.act = act
    with stoppable(), pytest.raises(RemoteError if ending == "failure" else Stopped):
        service(server, tmp_path, concurrency=4).ask(BODIES)
    asked = server.requests
    server.heal()
    assert [each.value for each in service(server, tmp_path).ask(BODIES)] == [0, 1, 2, 3]
    assert server.requests - asked == (1 if ending == "failure" else 0)


def test_requests_that_wait_for_a_retry_do_not_delay_the_end(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.act = lambda server, connection, body: (
        reply(connection, b"", 401)
        if body["n"] == 3
        else reply(connection, b"", 503, {"Retry-After": "100"})
    )
    with pytest.raises(RemoteError, match="401"):
        service(server, tmp_path, concurrency=4, max_retries=3).ask(BODIES)


def test_refused_requests_in_a_row_do_not_end_the_run(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.act = lambda server, connection, body: reply(connection, b"too long", 400)
    replies = service(server, tmp_path, concurrency=1).ask([{"n": n} for n in range(30)])
    assert {each.reason for each in replies} == {"HTTP 400: too long"}


def test_an_error_that_ends_the_run_quotes_the_server(
    server: ScriptedServer, tmp_path: Path
) -> None:
    words = b'{"error": "no model \'tiny-9\', try tiny-8"}'
    server.act = lambda server, connection, body: reply(connection, words, 404)
    with pytest.raises(RemoteError, match=r"HTTP 404; the server says: .*try tiny-8"):
        service(server, tmp_path).ask(BODIES[:1])


# The command


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["accepts, then stalls", "429, Retry-After in seconds"])
def test_sigterm_ends_a_run_that_waits_for_a_server(
    fault: str, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.good, server.act = CLIENTS["reward"].good, BY_NAME[fault].act
    where = {"base_url": f"http://127.0.0.1:{server.port}/v1", "timeout_seconds": 1200}
    reward = {"http": {"server": {**where, "max_retries": 50}}}
    stage = {"step": "evaluate_reward", "rewards": [reward], "pairs": "pairs.jsonl"}
    recipe = write_recipe(tmp_path, {"look": stage})
    command = [sys.executable, "-m", "alignkit", "run", str(recipe), "--out", str(tmp_path / "run")]
    monkeypatch.setenv("ALIGNKIT_REPORT", "0")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not server.requests and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, said
    server.heal()
    run(recipe)
    assert max(server.paid.values()) == 1
