"""Errors in words, and requests to stop."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from alignkit.errors import (
    LONGEST,
    Stopped,
    did_you_mean,
    error_context,
    handling,
    install_command,
    message_of,
    no_disk,
    reason_of,
    request_stop,
    should_stop,
    stoppable,
)


def test_what_is_unexpected_is_one_line_and_where_the_run_was() -> None:
    assert reason_of(ValueError("two\n  lines")) == "ValueError: two lines"
    assert reason_of(ValueError()) == "ValueError"
    assert len(reason_of(ValueError("x" * 3000))) == len("ValueError: ") + LONGEST
    with pytest.raises(KeyboardInterrupt) as raised, error_context("in step 1 of 2"):
        raise KeyboardInterrupt
    assert message_of(raised.value) == "interrupted\n  in step 1 of 2"
    with pytest.raises(ValueError, match="odd") as odd, error_context("in step 1 of 2"):
        raise ValueError("odd")
    assert message_of(odd.value).splitlines() == [
        "error: unexpected ValueError: odd (set ALIGNKIT_DEBUG=1 for the traceback)",
        "  in step 1 of 2",
    ]


def test_the_nearest_name() -> None:
    assert did_you_mean("demo.JSONL", ["PPO", "Demos.jsonl"]) == "did you mean 'Demos.jsonl'?"
    assert did_you_mean("zzz", ["PPO"]) == ""


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EIO", "ESTALE"])
def test_a_disk_that_cannot_be_used(name: str) -> None:
    number = getattr(errno, name)
    assert no_disk(OSError(number, os.strerror(number))) is not None
    assert no_disk(OSError(errno.ENOENT, os.strerror(errno.ENOENT))) is None


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
