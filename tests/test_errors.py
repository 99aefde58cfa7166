"""Errors in words, and requests to stop."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
from collections.abc import Callable
from email.message import Message
from urllib.error import HTTPError

import pytest
import torch

from alignkit.errors import (
    LONGEST,
    PluginError,
    Stopped,
    did_you_mean,
    located_at,
    message_of,
    no_disk,
    reason_of,
)
from alignkit.host.calls import attributed_to
from alignkit.runs.signals import handling, request_stop, should_stop, stoppable
from alignkit_plugins.extras import install_command


def test_what_is_unexpected_is_one_line_and_where_the_run_was() -> None:
    assert reason_of(ValueError("two\n  lines")) == "ValueError: two lines"
    assert reason_of(ValueError()) == "ValueError"
    assert len(reason_of(ValueError("x" * 3000))) == len("ValueError: ") + LONGEST
    with pytest.raises(KeyboardInterrupt) as raised, located_at("in step 1 of 2"):
        raise KeyboardInterrupt
    assert message_of(raised.value) == "interrupted\n  in step 1 of 2"
    with pytest.raises(ValueError, match="odd") as odd, located_at("in step 1 of 2"):
        raise ValueError("odd")
    assert message_of(odd.value).splitlines() == [
        "error: unexpected ValueError: odd (set ALIGNKIT_DEBUG=1 for the traceback)",
        "  in step 1 of 2",
    ]


def test_the_nearest_name() -> None:
    assert did_you_mean("demo.JSONL", ["PPO", "Demos.jsonl"]) == "did you mean 'Demos.jsonl'?"
    assert did_you_mean("zzz", ["PPO"]) == ""


def test_a_disk_that_cannot_be_used() -> None:
    unusable = ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EIO", "ESTALE")
    for name, is_found in [*((name, True) for name in unusable), ("ENOENT", False)]:
        number = getattr(errno, name)
        assert (no_disk(OSError(number, os.strerror(number))) is not None) is is_found


class ServerError(RuntimeError):
    """An error of a plugin's client."""


# What a plugin raises that quotes a server, and calls of compiled libraries that fail on this
# machine
QUOTED: list[Exception] = [
    ValueError("HTTP 413: File too large, the endpoint takes 1 MB"),
    RuntimeError("HTTP 507: No space left on device"),
    HTTPError("http://x.test", 403, "Permission denied", Message(), None),
    OSError("the server says: Disk quota exceeded"),
    ServerError("HTTP 500: CUDA out of memory"),
    RuntimeError("HTTP 500: CUDA out of memory"),
    ExceptionGroup("two", [ValueError("the disk is full"), ServerError("out of memory")]),
]
FAILING: list[Callable[[], object]] = [
    lambda: sqlite3.connect(":memory:").executescript("PRAGMA max_page_count=1; CREATE TABLE t(x)"),
    lambda: torch.empty(2**50),
]


def test_what_ran_out_here_is_not_what_a_server_says() -> None:
    for error in QUOTED:
        with pytest.raises(PluginError, match=r"^plugin 'x', in `ServerError.ask`: "):
            with attributed_to(ServerError, "ask", "plugin 'x'"):
                raise error
        assert "the disk" not in message_of(error)
    for fail in FAILING:
        with pytest.raises((sqlite3.Error, RuntimeError)), attributed_to(ServerError, "ask"):
            fail()


def test_the_command_that_installs_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/my env/python")
    assert install_command("serve") == "'/my env/python' -m pip install 'alignkit[serve]'"


def test_a_second_signal_stops_at_once_and_afterwards_others_receive_them() -> None:
    received: list[int] = []
    with handling([signal.SIGTERM], lambda number, frame: received.append(number)):
        with stoppable():
            should_stop()
            request_stop("first")
            with stoppable():
                pass
            with pytest.raises(Stopped, match=r"^stopped: first$"):
                os.kill(os.getpid(), signal.SIGTERM)
        should_stop()
        os.kill(os.getpid(), signal.SIGTERM)
    assert received == [signal.SIGTERM]
