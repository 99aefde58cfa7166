"""Judges and rewards on servers that fail: bounded time, nothing paid for twice, no score made up,
a stop obeyed.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import signal
import time
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from alignkit.errors import RemoteError, Stopped
from alignkit.runs.signals import stoppable
from alignkit_plugins.ai_feedback.writer import CALLS, _sent, stored
from alignkit_plugins.servers import remote as asking
from alignkit_plugins.servers.remote import Malformed, Remote, RemoteOptions
from tests.ai_feedback.judge_server import Reply, Server, serving
from tests.patience import PATIENCE

BODIES = [{"n": n} for n in range(4)]


def read(text: bytes) -> Any:
    try:
        return json.loads(text)["number"]
    except (ValueError, KeyError, TypeError):
        raise Malformed("the reply is no number") from None


def good(request: dict[str, Any]) -> Reply:
    return Reply(body={"number": request["n"]})


def service(server: Server, folder: Path, **options: Any) -> Remote:
    where = {"base_url": server.url, "max_retries": 0, "concurrency": 1, **options}
    return Remote("mine", RemoteOptions(**where), "score", folder, read)


BOMB = gzip.compress(b" " * (50 << 20))
AGAIN, AT_ONCE, MISSING = "tried again", "at once", "missing"  # how the run ends, or goes on
FAULTS: dict[str, tuple[Reply, str]] = {
    **{str(code): (Reply(code), AGAIN) for code in (408, 429, 500, 502, 503, 504)},
    **{str(code): (Reply(code), AT_ONCE) for code in (401, 403, 404)},
    **{str(code): (Reply(code), MISSING) for code in (400, 413, 422)},
    "a long wait": (Reply(429, headers={"Retry-After": "3600"}), AT_ONCE),
    "a date": (Reply(429, headers={"Retry-After": formatdate(time.time() + 3600)}), AT_ONCE),
    "redirected": (Reply(307, headers={"Location": "/v1/score"}), AT_ONCE),
    "to the cloud": (Reply(302, headers={"Location": "http://169.254.169.254/"}), AT_ONCE),
    "stalls": (Reply(body={"number": 7}, pause=PATIENCE), AGAIN),
    "cut off": (Reply(body={"number": 7}, headers={"Content-Length": "99"}), AGAIN),
    "empty": (Reply(body=b""), MISSING),
    "half": (Reply(body=b'{"number": '), MISSING),
    "a bomb": (Reply(body=BOMB, headers={"Content-Encoding": "gzip"}), MISSING),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_as_it_should_and_can_be_resumed(name: str, tmp_path: Path) -> None:
    """The server replies well twice, then fails in one way. Healed, it is asked only for what is
    missing.
    """
    fault, ending = FAULTS[name]
    with serving(lambda request: fault) as server:
        options = {"max_retries": 1, "timeout_seconds": 1.0 if name == "stalls" else PATIENCE}
        remote = service(server, tmp_path, **options)
        server.script = [good(body) for body in BODIES[:2]]
        if ending == MISSING:
            assert [reply.value for reply in remote.ask(BODIES)] == [0, 1, None, None]
        else:
            with pytest.raises(RemoteError) as raised:
                remote.ask(BODIES)
            assert raised.value.exit_code == 6
        tries = {AGAIN: 2, AT_ONCE: 1, MISSING: 2}[ending]
        assert len(server.requests) == 2 + tries
        server.judge = good
        assert [reply.value for reply in remote.ask(BODIES)] == [0, 1, 2, 3]
        assert server.requests[-2:] == BODIES[2:] and len(server.requests) == 2 + tries + 2


def test_a_stored_reply_is_that_of_the_service_that_gave_it(tmp_path: Path) -> None:
    with serving(good) as one, serving(lambda request: Reply(body={"number": 9})) as other:
        asked = [service(each, tmp_path).ask(BODIES[:1]) for each in (one, other, one)]
        assert [reply.value for (reply,) in asked] == [0, 9, 0]
        assert len(one.requests) == len(other.requests) == 1


@pytest.mark.parametrize(
    "reply", [Reply(pause=PATIENCE), Reply(429, headers={"Retry-After": "50"})]
)
def test_a_stop_is_obeyed_while_a_server_stalls(
    reply: Reply, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "LAST_SECONDS", 0.5)

    def stops(request: dict[str, Any]) -> Reply:
        os.kill(os.getpid(), signal.SIGTERM)
        return reply

    with serving(stops) as server, stoppable(), pytest.raises(Stopped):
        service(server, tmp_path, max_retries=3, timeout_seconds=PATIENCE).ask(BODIES)


@pytest.mark.parametrize("ending", ["failure", "stop"])
def test_replies_under_way_are_waited_for_and_not_paid_for_twice(
    ending: str, tmp_path: Path
) -> None:
    """But no request that waits to be sent again."""

    def judge(request: dict[str, Any]) -> Reply:
        if len(server.requests) == 4 and ending == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        if request["n"] == 3:
            return Reply(503, headers={"Retry-After": "50"})
        if request["n"] == 0 and ending == "failure":
            return Reply(401, pause=0.3)
        return replace(good(request), pause=0.6)

    with serving(judge) as server:
        wrong = RemoteError if ending == "failure" else Stopped
        with stoppable(), pytest.raises(wrong):
            service(server, tmp_path, concurrency=4, max_retries=3).ask(BODIES)
        server.judge = good
        assert [each.value for each in service(server, tmp_path).ask(BODIES)] == [0, 1, 2, 3]
        assert len(server.requests) == 4 + (2 if ending == "failure" else 1)


def test_an_error_that_ends_the_run_quotes_the_server_and_others_do_not_end_it(
    tmp_path: Path,
) -> None:
    with serving(lambda request: Reply(404, b'{"error": "no tiny-9, try tiny-8"}')) as server:
        with pytest.raises(RemoteError, match=r"HTTP 404; the server says: .*try tiny-8"):
            service(server, tmp_path).ask(BODIES)
        server.judge = lambda request: Reply(400, b"too long")
        replies = service(server, tmp_path).ask([{"n": n} for n in range(30)])
        assert {each.reason for each in replies} == {"HTTP 400: too long"}


def test_calls_of_tools_are_sent_as_json_and_no_reply() -> None:
    """A reply with a call is never taken for the text next to it."""
    for arguments in ({"a": 1}, '{"a": 1}'):
        call = {"function": {"name": "add", "arguments": arguments}}
        sent = _sent({"role": "assistant", "content": "", "tool_calls": [call]})
        assert sent["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'
    for content in (None, "Let me add."):
        message = {"content": content, "tool_calls": [call]}
        found = stored(json.dumps({"choices": [{"message": message}]}).encode())
        assert (found["text"], found["reason"]) == ("", CALLS)


ODD: list[Any] = [math.nan, math.inf, 3.0, "-0.1", True]  # log-probabilities
ODD_CHOICES: list[Any] = [
    [],
    [["1"]],
    *([{"logprobs": {"content": [{"top_logprobs": [{"token": "1", "logprob": x}]}]}}] for x in ODD),
    [{"logprobs": {"content": [{"top_logprobs": [{"token": "1", "logprob": -0.1}] * 2}]}}],
]


@pytest.mark.parametrize(
    "text",
    [b"", b"<html>", b'[["1"]]', *(json.dumps({"choices": c}).encode() for c in ODD_CHOICES)],
)
def test_what_is_no_completion_is_malformed(text: bytes) -> None:
    with pytest.raises(Malformed):
        stored(text)
