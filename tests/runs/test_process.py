"""What a run says when memory runs out, when it is asked to end, and when a setting has no effect
in one process.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from alignkit.contract.kinds import World
from alignkit.errors import DataError, OutOfResource, RemoteError, StageWaits, Stopped
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import Run, with_help
from alignkit.runs.signals import should_stop, stoppable
from alignkit.runs.start import start, world_of
from tests.rows import Said, write_recipe


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


def test_what_was_nobodys_mistake_can_be_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["run", "a b.yaml", "key=sk-abcdefghijklmnop1234"]
    monkeypatch.setattr("sys.argv", ["/bin/alignkit", *words])
    notes = ["in stage 'labels'", "to resume: alignkit run 'a b.yaml' key=***"]
    assert with_help(RemoteError("no answer"), "labels").__notes__ == notes
    monkeypatch.setattr("sys.argv", ["/x/alignkit/__main__.py", "run", "smoke"])
    assert with_help(Stopped("stopped"), "").__notes__ == [
        "to resume: python -m alignkit run smoke"
    ]


def test_all_stages_that_wait_are_told_and_what_needs_one_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    begun: list[str] = []

    def wait(self: Run, stage: Any) -> bool:
        begun.append(stage.name)
        if stage.name == "other":
            return False
        raise StageWaits(f"{stage.name} waits", missing=1, store=tmp_path)

    monkeypatch.setattr(Run, "_stage", wait)
    sft = {"algorithm": "sft", "data": "demos.jsonl"}
    needs = {"a": "base", "b": "base", "c": "a", "d": "c", "other": "base"}
    stages = {name: {**sft, "from": needed} for name, needed in needs.items()}
    run = Run(load_recipe(write_recipe(tmp_path, stages)), tmp_path / "run")
    with pytest.raises(StageWaits, match=r"^a waits\nb waits$"):
        run.execute()
    assert begun == ["a", "b", "other"] and "a: waits for 1 label\n" in said()


def test_several_processes_are_those_of_a_launcher() -> None:
    launched = {"RANK": "1", "WORLD_SIZE": "2"}
    assert world_of(launched) == World()  # of a batch system
    assert world_of({**launched, "MASTER_PORT": "1"}) == World(1, 2)


def test_a_process_that_was_asked_to_end_does_not_repeat_the_error_of_all(
    monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    """On a busy machine the launcher asks before this process has found out that the others are
    gone.
    """

    def run(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise DataError("the others are gone")

    monkeypatch.setattr("alignkit.runs.start._run", run)
    monkeypatch.setattr("alignkit.runs.start.SAME_ERROR", 0.0)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with stoppable():
        assert start(lambda warn: pytest.fail("not read"), None) == DataError.exit_code
    should_stop()  # nothing outside is stopped
    assert said() == ""
