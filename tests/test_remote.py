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
from alignkit_plugins.ai_feedback.remote import Malformed, Remote, RemoteOptions
from tests.faults.case import HELD
from tests.faults.clients import CLIENTS, Client
from tests.faults.scripted_server import ScriptedServer, reply
from tests.faults.servers import FAULTS, Fault, stopped_after, tried
from tests.patience import PATIENCE, impatient

QUICK = {
    "refused",
    "401",
    "503",
    "HTML with 200",
    "wrong count",
    "injected verdict",
}
BY_NAME = {fault.name: fault for fault in FAULTS}
STALLS = [fault for fault in FAULTS if fault.stalls]


@pytest.mark.parametrize("client", CLIENTS.values(), ids=lambda client: client.name)
@pytest.mark.parametrize(
    "fault",
    [pytest.param(each, marks=() if each.name in QUICK else pytest.mark.slow) for each in FAULTS],
    ids=lambda fault: fault.name,
)
def test_a_fault_ends_as_it_should_and_can_be_resumed(
    fault: Fault, client: Client, tmp_path: Path
) -> None:
    found = tried(fault, client, tmp_path)
    assert found.outcome == HELD, (
        f"{found.ending} ({found.seconds:.1f} s): {found.problem}\n{found.text}"
    )


def test_the_table_has_every_kind() -> None:
    assert BY_NAME.keys() >= QUICK and len(FAULTS) >= 32 and len(BY_NAME) == len(FAULTS)


@pytest.mark.parametrize("client", CLIENTS.values(), ids=lambda client: client.name)
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(each, marks=pytest.mark.slow if "429" not in each.name else ())
        for each in STALLS
    ],
    ids=lambda fault: fault.name,
)
def test_a_stop_is_obeyed_while_a_server_stalls(
    fault: Fault, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "LAST_SECONDS", 0.5)
    # And not when the server has stalled for ten minutes
    assert stopped_after(fault, client, tmp_path) == 75


# Replies that are under way


def read(text: bytes) -> Any:
    try:
        return json.loads(text)["number"]
    except (ValueError, KeyError, TypeError):
        raise Malformed("the reply is no number") from None


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    running = ScriptedServer(lambda body: {"number": body["n"]}, healthy=0)
    with impatient():
        yield running
    running.close()


def service(
    server: ScriptedServer, folder: Path, host: str = "127.0.0.1", **options: Any
) -> Remote:
    url = f"http://{host}:{server.port}/v1"
    settings = {"base_url": url, "max_retries": 0} | options
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
    server.act = lambda server, connection, body: reply(
        connection,
        b"",
        401 if body["n"] == 3 else 503,
        {"Retry-After": "100"} if body["n"] < 3 else {},
    )
    with pytest.raises(RemoteError, match="401"):
        service(server, tmp_path, concurrency=4, max_retries=3).ask(BODIES)


# Replies that cannot be used


def test_refused_requests_in_a_row_do_not(server: ScriptedServer, tmp_path: Path) -> None:
    server.act = lambda server, connection, body: reply(connection, b"too long", 400)
    replies = service(server, tmp_path, concurrency=1).ask([{"n": n} for n in range(30)])
    assert {each.reason for each in replies} == {"HTTP 400: too long"}


# The command


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["stalled request", "backoff", "Retry-After"])
def test_sigterm_ends_a_run_that_waits_for_a_server(
    phase: str, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts = {
        "stalled request": BY_NAME["accepts, then stalls"].act,
        "backoff": BY_NAME["503"].act,
        "Retry-After": lambda server, connection, body: reply(
            connection, b"", 429, {"Retry-After": "100"}
        ),
    }
    server.good, server.act = CLIENTS["reward"].good, acts[phase]
    rows = [
        {"prompt": f"Which {n}?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(3)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reward = {
        "http": {
            "server": {"base_url": f"http://127.0.0.1:{server.port}/v1", "timeout_seconds": 1200}
        }
    }
    stage = {"step": "evaluate_reward", "rewards": [reward], "pairs": "pairs.jsonl"}
    (tmp_path / "r.json").write_text(
        json.dumps({"model": {"base": "tiny"}, "stages": {"look": stage}})
    )
    command = [
        sys.executable,
        "-m",
        "alignkit",
        "run",
        str(tmp_path / "r.json"),
        "--out",
        str(tmp_path / "run"),
    ]
    monkeypatch.setenv("ALIGNKIT_REPORT", "0")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not server.requests and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, said
    server.heal()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert max(server.paid.values()) == 1


def test_an_error_that_ends_the_run_quotes_the_server(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.act = lambda server, connection, body: reply(
        connection, b'{"error": "no model \'tiny-9\', try tiny-8"}', 404
    )
    with pytest.raises(
        RemoteError, match=r"HTTP 404; the server says: .*no model 'tiny-9', try tiny-8"
    ):
        service(server, tmp_path).ask(BODIES[:1])
