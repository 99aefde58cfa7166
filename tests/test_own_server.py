"""Servers of a run's own: started once, waited for, and ended however the run ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from patience import PATIENCE

from alignkit import RunFailed
from alignkit_plugins.vllm.own_server import OwnServer, end_servers, keep_servers

PROGRAM = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/ready" else 404)
        self.end_headers()
        self.wfile.write((os.environ["KEY"] + os.environ.get("RANK", "")).encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
COMMAND = (sys.executable, "-c", PROGRAM, "{port}")


def server(folder: Path, **variables: str) -> OwnServer:
    return OwnServer.of("Test", COMMAND, folder, {"KEY": "{key}", **variables})


def test_a_server_outlives_its_stage_and_ends_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setenv("RANK", "1")  # of this process, not of the server's
    keep_servers(tmp_path / "cache")
    one = server(tmp_path)
    one.wait(PATIENCE, said.append, "/ready")
    assert said == [f"starting Test, which can take minutes; its log is {one.log}"]
    assert one.log.parent == tmp_path / "cache"
    with urllib.request.urlopen(f"{one.url}/ready") as answer:
        assert answer.read().decode() == one.key
    one.release()  # by a stage
    assert server(tmp_path) is one and not one.ended
    other = server(tmp_path, MORE="1")
    assert other is not one and other.key != one.key
    other._guard.terminate()  # as if it failed
    other._guard.wait()
    again = server(tmp_path, MORE="1")
    assert again is not other and not again.ended
    end_servers()
    assert one.ended and again.ended
    alone = server(tmp_path)
    assert alone is not one and alone.log.parent == tmp_path
    alone.release()
    assert alone.ended


def test_a_server_that_is_not_ready_says_why(tmp_path: Path) -> None:
    late = server(tmp_path)
    with pytest.raises(
        RunFailed, match="the server of Test was not ready after 1 seconds; raise 'timeout'"
    ):
        late.wait(1.0, lambda line: None, "/missing")
    assert late.ended


def is_alive(process: int) -> bool:
    """Whether a process runs. One that has ended may wait for its parent to ask about it."""
    found = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False
    )
    return found.stdout.strip()[:1] not in ("", "Z")


def until(done: Callable[[], bool]) -> None:
    waited = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < waited
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_server_outlives_its_run(tmp_path: Path, number: signal.Signals) -> None:
    """A process starts a guard of a server that ignores SIGTERM and has a child, and is then
    killed.
    """
    command = (
        f"trap '' TERM; sleep 1000 & echo $! $$ > {tmp_path}/ids.new; mv {tmp_path}/ids.new "
        f"{tmp_path}/ids; wait"
    )
    guard = ["-P", "-m", "alignkit_plugins.vllm.own_server"]
    program = (
        "import os, subprocess, sys\n"
        f"subprocess.run([sys.executable, *{guard!r}, str(os.getpid()), 'sh', '-c', {command!r}])\n"
    )
    environment = {**os.environ, "ALIGNKIT_GUARD_SECONDS": "0.5"}
    with subprocess.Popen([sys.executable, "-c", program], env=environment) as parent:
        until(lambda: (tmp_path / "ids").exists())
        ids = [int(word) for word in (tmp_path / "ids").read_text().split()]
        assert all(map(is_alive, ids))
        parent.send_signal(number)
    until(lambda: not any(map(is_alive, ids)))
