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
from several import assert_alike, offline, online, write_recipe
from torch import nn

from alignkit import cli
from alignkit.plugins import load_plugins
from alignkit.training.trainer import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

STAGES = {"align": online("rloo", checkpoint_every=1)}


def run(work: Path, fault: str, rank: int = 1, stages: dict[str, object] = STAGES) -> list[Ended]:
    recipe = write_recipe(stages)
    variables = [{"FAULT": fault} if number == rank else {} for number in range(2)]
    ended = together(work, ["run", recipe, "--out", "out"], 2, variables)
    assert all(process.seconds < 60 for process in ended)
    assert not list(Path("out").rglob("*.tmp")), "nothing half-written"
    return ended


def continued(processes: int) -> None:
    """Finish the run, and compare it with one that was not interrupted."""
    found = load_checkpoint(Path("out/align/checkpoints"), pytest.fail)
    assert found["number"] == 2
    if processes == 1:
        assert cli.main(["run", "recipe.yaml", "--out", "out"]) == 0
    else:
        ended = together(Path(), ["run", "recipe.yaml", "--out", "out"], processes)
        assert [process.code for process in ended] == [0] * processes, ended
    assert cli.main(["run", "recipe.yaml", "--out", "whole"]) == 0
    assert_alike(Path("out"), Path("whole"))


def test_an_error_of_one_process_is_said_once_and_by_name(work: Path) -> None:
    leader, other = run(work, "raises")
    # The launcher ends those that are left
    assert leader.code in (1, 3) and other.code in (leader.code, -15)
    assert (
        "error: in process 1: reward function 'letters' of" in leader.err
        and "'no such word'" in leader.err
    )
    # The message, and the line of code
    assert other.err == "" and leader.err.count("no such word") == 2
    end = json.loads(Path("out/starts.jsonl").read_text().splitlines()[-1])
    assert end["outcome"] == "failed" and "in process 1" in end["message"]


@pytest.mark.parametrize("processes", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_run_whose_process_died_is_continued_by_another_number(
    work: Path, processes: int
) -> None:
    leader, other = run(work, "kill")
    assert other.code == -9 and leader.code == 1
    assert "error: another process of the run has ended" in leader.err
    continued(processes)


def test_an_error_of_process_0_is_the_error_of_all(work: Path) -> None:
    """Not a lost connection: also where only process 0 works."""
    (Path() / "hooks.py").write_text(
        HOOKS.replace("run.request_stop", "raise SystemError"), encoding="utf-8"
    )
    recipe = write_recipe({"align": offline("sft", "demos", epochs=3)})
    leader, other = together(work, ["run", recipe, "--plugin", "hooks.py", "--out", "out"], 2)
    load_plugins()  # otherwise the hook is one of other tests
    assert leader.code == other.code == 3 or other.code == -15, (leader, other)
    assert "enough for today" in leader.err and "another process" not in leader.err + other.err


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
    recipe = write_recipe({"align": offline("sft", "demos")})
    leader, other = together(work, ["run", recipe, "--out", "out"], 2)
    assert leader.code == 1 and "error: another process of the run has ended" in leader.err, leader
    assert other.code == 5 and "process 1: error: out of memory: " in other.err, other


@pytest.mark.slow
def test_the_others_end_with_process_0(work: Path) -> None:
    leader, other = run(work, "kill", rank=0)
    assert leader.code == -9 and other.code
    continued(2)


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_signal_to_one_process_stops_all_at_the_same_step(work: Path, rank: int) -> None:
    leader, other = run(work, "SIGTERM", rank)
    assert leader.code == 75 and other.code in (75, -15)  # the launcher ends those that are left
    assert (
        "error: stopped: SIGTERM" in leader.err and "to resume: " in leader.err and other.err == ""
    )
    continued(2 - rank)


def test_a_stopped_offline_stage_continues_where_it_was(work: Path) -> None:
    """The checkpoint is that of the step at which all have stopped."""
    stages = {"align": offline("sft", "demos", epochs=3, checkpoint_every=1000)}
    recipe = write_recipe(stages)
    (Path() / "hooks.py").write_text(HOOKS, encoding="utf-8")
    arguments = ["run", recipe, "--plugin", "hooks.py", "--out"]
    ended = together(work, [*arguments, "out"], 2)
    assert ended[0].code == 75 and ended[1].code in (75, -15), ended
    found = load_checkpoint(Path("out/align/checkpoints"), pytest.fail)
    assert found["learner"]["steps"] == 5
    try:
        assert cli.main([*map(str, arguments), "out"]) == 0
        Path("stopped").touch()
        assert cli.main([*map(str, arguments), "whole"]) == 0
    finally:
        load_plugins()  # otherwise the hook stops the runs of other tests
    assert_alike(Path("out"), Path("whole"))


HOOKS = """
from pathlib import Path
from alignkit import hookimpl

@hookimpl
def metrics_logged(run, stage, step, metrics):
    if step == 5 and not Path("stopped").exists():
        Path("stopped").touch()
        run.request_stop("enough for today")
"""
