"""`alignkit serve` as a process, and the addresses that it listens at."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from alignkit.cli import main
from alignkit_plugins.servers.server import Address, address_of, listening, url
from tests.patience import PATIENCE
from tests.rows import Said, cells, user

TOKEN = "a-token-of-this!"  # as short as one may be
NAME = "api.example.org"


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_server_in_the_middle_of_an_answer(
    house_run: Path, number: signal.Signals
) -> None:
    pytest.importorskip("uvicorn")
    words = ["serve", f"{house_run}/online", "--host", "0.0.0.0", "--port", "0"]
    environment = {**os.environ, "ALIGNKIT_TOKEN": TOKEN}
    command = [sys.executable, "-m", "alignkit", *words]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process,
        ExitStack() as ended,
    ):
        ended.callback(process.kill)
        assert process.stderr is not None
        said = ""
        while "listening at" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        found = re.findall(r"listening at (\S+),", said)
        assert "warning: others can reach http://0.0.0.0" in said
        address = found[0].replace("0.0.0.0", "127.0.0.1")
        asked = {"max_tokens": 1000, "stream": True, "temperature": 0}
        body = json.dumps({"messages": [user("a")], **asked})
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
        request = urllib.request.Request(f"{address}/chat/completions", body.encode(), headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            assert reply.readline().startswith(b"data: {")
            process.send_signal(number)
            rest = reply.read().decode()
        assert process.wait(PATIENCE) == 0
        last = json.loads(rest.rstrip().rpartition("data: ")[2])
        assert last["error"]["message"] == "the server is stopping" and "[DONE]" not in rest
        assert process.stderr.read().endswith("stopped\n")


def client_of(address: Address) -> Any:
    pytest.importorskip("starlette")
    from starlette.testclient import TestClient

    from alignkit_plugins.serving.serve_app import Endpoint

    return TestClient(Endpoint({}).application(address, TOKEN))


def test_without_the_token() -> None:
    """Only the page itself is there without it."""
    client = client_of(Address("0.0.0.0", None))
    for sent in ("", "Bearer ", "Bearer another-token-of-this", TOKEN[:-1]):
        assert client.get("/v1/models", headers={"Authorization": sent}).status_code == 401
    assert client.post("/v1/chat/completions", json={}).status_code == 401
    assert client.get("/v1/models", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert client.get("/").status_code == 200
    # Nor is anything kept here
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert client.get("/v1/consent", headers=headers).status_code == 404


def test_a_proxy_passes_on_its_name(said: Said) -> None:
    """The server listens on this machine only, and answers for the name, but for no other one and
    without the token.
    """
    address = address_of(f"https://{NAME}")
    with listening(0) as listener:
        address.warn(listener)
        assert f"{url(listener)} waits for a proxy at https://{NAME}" in said()
    client = client_of(address)
    for name, token, status in ((NAME, TOKEN, 200), ("x.org", TOKEN, 400), (NAME, "", 401)):
        headers = {"Host": name, "Authorization": f"Bearer {token}"}
        assert client.get("/v1/models", headers=headers).status_code == status
    assert address.host == "127.0.0.1"


USAGE = f"""
sft --host 0.0.0.0                             | others could use the models at 0.0.0.0$  help: name a --token
sft --host https://{NAME}                      | others could use the models at https://{NAME}
sft --host https://a/b --token {TOKEN}         | --host https://a/b: no address
sft --token short                              | --token must have at least 16 ASCII characters
sft --token {TOKEN}é                           | --token must have at least 16 ASCII characters
sft --host no.such.host.invalid --token {TOKEN} | --host no.such.host.invalid
sft --license MIT                              | --license is about what is kept
sft --port 99999                               | less than or equal to 65535
liked                                          | is a reward model, but a policy is needed
"""


@pytest.mark.parametrize(("words", "why"), cells(USAGE))
def test_usage(house_run: Path, words: str, why: str, said: Said) -> None:
    """$ is an end of a line."""
    pytest.importorskip("uvicorn")
    stage, *more = words.split()
    assert main(["serve", f"{house_run}/{stage}", *more]) == 2
    assert why in said().replace("\n", "$")
