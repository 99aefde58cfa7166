"""What a run says when memory runs out, when it is asked to end, and when a setting has no effect
in one process.
"""

from __future__ import annotations

import os
import signal

import pytest

from alignkit.errors import OutOfResource, RunFailed, should_stop, stoppable
from alignkit.runs.run import with_help
from alignkit.runs.start import start
from tests.rows import Said


def test_memory_that_runs_out_says_what_saves_memory() -> None:
    """This line is all that process 0 shows of another process whose pass ran out."""
    found = with_help(MemoryError("900 GiB"), "")
    assert isinstance(found, OutOfResource) and found.exit_code == 5
    assert str(found).splitlines() == [
        (
            "out of memory: reduce max_length or samples_per_prompt, or set "
            "model.activation_checkpointing=true (900 GiB)"
        )
    ]
    error = ValueError("no such layer")
    assert with_help(error, "") is error


def test_a_process_that_was_asked_to_end_does_not_repeat_the_error_of_all(
    monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    """On a busy machine the launcher asks before this process has found out that the others are
    gone.
    """

    def run(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise RunFailed("the others are gone")

    monkeypatch.setattr("alignkit.runs.start._run", run)
    monkeypatch.setattr("alignkit.runs.start.SAME_ERROR", 0.0)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with stoppable():
        assert start(lambda warn: pytest.fail("not read"), None) == RunFailed.exit_code
    should_stop()  # nothing outside is stopped
    assert said() == ""
