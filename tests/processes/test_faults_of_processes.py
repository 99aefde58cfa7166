"""A process that fails, dies or is stopped ends the run in all, and any number of processes
continues it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from forked import Ended, together
from several import RLOO, SFT, assert_same_as_one, write_recipe
from torch import nn

from alignkit import cli
from alignkit.errors import PluginError, Stopped
from alignkit.host.plugins import load_plugins
from alignkit.training.trainer import load_checkpoint
from alignkit_plugins.processes.collectives import Failure, ProcessCollectives

pytestmark = pytest.mark.usefixtures("one_thread")
ARGUMENTS = ("run", "recipe.yaml", "--out", "out")


def run(fault: str) -> list[Ended]:
    """fault: what happens in an iteration of `align`, and to which process."""
    write_recipe(RLOO)
    ended = together(ARGUMENTS, FAULT=fault)
    assert not list(Path("out").rglob("*.tmp")), "nothing half-written"
    return ended


def continued(processes: int) -> None:
    """Finish the run, and compare it with one that was not interrupted."""
    assert load_checkpoint(Path("out/align/checkpoints"), pytest.fail)["number"] == 2
    ended = together(ARGUMENTS, processes)
    assert [process.code for process in ended] == [0] * processes, ended
    assert_same_as_one(Path("recipe.yaml"), "out")


def test_an_error_of_one_process_is_said_once_and_by_name(work: Path) -> None:
    leader, other = run("raises-1")
    # The launcher ends those that are left
    assert leader.code in (1, 3) and other.code in (leader.code, -15)
    assert "error: in process 1: reward function 'letters' of" in leader.err
    # The message, and the line of code
    assert other.err == "" and leader.err.count("no such word") == 2
    end = json.loads(Path("out/starts.jsonl").read_text().splitlines()[-1])
    assert end["outcome"] == "failed" and "in process 1" in end["message"]


@pytest.mark.parametrize(
    ("fault", "code", "said", "processes"),
    [
        ("SIGKILL-1", 1, "error: another process of the run has ended", 1),
        ("SIGTERM-1", 75, "error: stopped: SIGTERM", 1),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (
                ("SIGKILL-1", 1, "error: another process of the run has ended", 3),
                ("SIGKILL-0", -9, "", 2),
                ("SIGTERM-0", 75, "to resume: ", 2),
            )
        ),
    ],
)
def test_a_run_that_ended_is_continued_by_another_number(
    work: Path, fault: str, code: int, said: str, processes: int
) -> None:
    """A signal to one process stops all at the same step."""
    leader, other = run(fault)
    assert leader.code == code and said in leader.err
    # The launcher ends those that are left
    assert other.code in ((75, -15) if code == 75 else (1, -9, -15))
    assert other.err == "" or code != 75
    continued(processes)


def test_a_reason_to_stop_of_any_process_stops_each(monkeypatch: pytest.MonkeyPatch) -> None:
    collectives = ProcessCollectives(0, 2, torch.device("cpu"))
    monkeypatch.setattr(collectives, "gather", lambda mine: [mine, "enough for today"])
    with pytest.raises(Stopped, match="enough for today"):
        collectives.should_stop(lambda: None)


def test_others_end_with_the_exit_code_of_the_one_that_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[Failure] = []
    monkeypatch.setattr(ProcessCollectives, "gather", lambda _, failure: sent.append(failure))
    ProcessCollectives(1, 2, torch.device("cpu")).fail(PluginError("no such word"))
    assert sent == [Failure(1, "no such word", 3, None)]


def test_a_failure_while_gradients_are_added_ends_all(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Process 0 waits for numbers, and a word of the failure would let both wait forever."""

    def gradient(parameter: nn.Parameter) -> torch.Tensor:
        if os.environ["RANK"] == "1":
            raise MemoryError("900 GiB")
        assert parameter.grad is not None
        return parameter.grad

    monkeypatch.setattr("alignkit_plugins.processes.collectives._gradient", gradient)
    write_recipe(SFT)
    leader, other = together(ARGUMENTS)
    assert leader.code == 1 and "error: another process of the run has ended" in leader.err, leader
    assert other.code == 5 and "process 1: error: out of memory: " in other.err, other


HOOKS = """
from pathlib import Path
from alignkit import hookimpl

@hookimpl
def metrics_logged(run, stage, step, metrics):
    if step == 5 and not Path("stopped").exists():
        Path("stopped").touch()
        run.request_stop("enough for today")
"""


def test_an_error_of_process_0_is_the_error_of_all(work: Path) -> None:
    """Not a lost connection: also where only process 0 works."""
    Path("hooks.py").write_text(HOOKS.replace("run.request_stop", "raise SystemError"))
    write_recipe(SFT, epochs=3)
    leader, other = together([*ARGUMENTS, "--plugin", "hooks.py"])
    assert leader.code == other.code == 3 or other.code == -15, (leader, other)
    assert "enough for today" in leader.err and "another process" not in leader.err + other.err


def test_a_stopped_offline_stage_continues_where_it_was(work: Path) -> None:
    """The checkpoint is that of the step at which all have stopped."""
    Path("hooks.py").write_text(HOOKS)
    recipe = write_recipe(SFT, epochs=3, checkpoint_every=1000)
    leader, other = together([*ARGUMENTS, "--plugin", "hooks.py"])
    assert leader.code == 75 and other.code in (75, -15), (leader, other)
    assert load_checkpoint(Path("out/sft/checkpoints"), pytest.fail)["learner"]["steps"] == 5
    try:
        assert cli.main([*ARGUMENTS, "--plugin", "hooks.py"]) == 0
        assert_same_as_one(recipe, "out", "--plugin", "hooks.py")
    finally:
        load_plugins()  # otherwise the hook stops the runs of other tests
