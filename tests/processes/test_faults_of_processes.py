"""A process that fails, dies or is stopped ends the run in all, and any number of processes
continues it.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Ended, together
from several import assert_alike, offline, online, write_recipe
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from alignkit import cli
from alignkit.plugins import load_plugins
from alignkit.training.trainer import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

FULL = {"base": "tiny", "dtype": "float32", "lora": "none"}
STAGES = {"align": online("rloo", checkpoint_every=1, iterations=3)}


def faulty(
    work: Path, fault: str, rank: int = 1, stages: Any = STAGES, model: Any = None, **how: Any
) -> list[Ended]:
    """Run in two processes, of which one meets a fault."""
    variables = [{"FAULT": fault} if number == rank else {} for number in range(2)]
    words = ["run", write_recipe(stages, model), "--out", "out"]
    ended = together(work, words, 2, variables, **how)
    assert all(process.code and process.seconds < 60 for process in ended), ended
    assert not list(Path("out").rglob("*.tmp")), "nothing half-written"
    return ended


def continued(processes: int, sharded: bool = False, words: Sequence[str] = ()) -> None:
    """Finish the run, and compare it with one that was not interrupted."""
    if processes == 1:
        assert cli.main(["run", "recipe.yaml", *words, "--out", "out"]) == 0
    else:
        arguments = ["run", "recipe.yaml", *words, "--out", "out"]
        ended = together(Path(), arguments, processes, sharded=sharded)
        assert [process.code for process in ended] == [0] * processes, ended
    assert "continuing after" in Path("out/run.log").read_text()
    assert cli.main(["run", "recipe.yaml", *words, "--out", "whole"]) == 0
    assert_alike(Path("out"), Path("whole"))


def test_an_error_of_one_process_is_said_once_and_by_name(work: Path) -> None:
    leader, other = faulty(work, "raises")
    # The launcher ends those that are left
    assert leader.code in (1, 3) and other.code in (leader.code, -15)
    assert "error: in process 1: reward function 'letters' of" in leader.err
    # The message, and the line of code
    assert other.err == "" and leader.err.count("no such word") == 2
    end = json.loads(Path("out/starts.jsonl").read_text().splitlines()[-1])
    assert end["outcome"] == "failed" and "in process 1" in end["message"]


@pytest.mark.parametrize(
    ("rank", "processes"),
    [(1, 1), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((1, 3), (0, 2)))],
)
def test_a_run_whose_process_died_is_continued_by_another_number(
    work: Path, rank: int, processes: int
) -> None:
    ended = faulty(work, "kill", rank)
    assert ended[rank].code == -9
    assert rank == 0 or "error: another process of the run has ended" in ended[0].err
    assert load_checkpoint(Path("out/align/checkpoints"), pytest.fail)["number"] == 2
    continued(processes)


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_signal_to_one_process_stops_all_at_the_same_step(work: Path, rank: int) -> None:
    leader, other = faulty(work, "SIGTERM", rank)
    assert leader.code == 75 and other.code in (75, -15)  # the launcher ends those that are left
    assert "error: stopped: SIGTERM" in leader.err and "to resume: " in leader.err
    assert other.err == "" and load_checkpoint(Path("out/align/checkpoints"), pytest.fail)
    continued(2 - rank)


@pytest.mark.parametrize(
    ("model", "before", "after"),
    [
        (None, True, 1),
        *(pytest.param(FULL, True, n, marks=pytest.mark.slow) for n in (1, 3)),
        pytest.param(FULL, False, 2, marks=pytest.mark.slow),
    ],
)
def test_any_number_of_processes_continues_with_or_without_parts(
    work: Path, model: Any, before: bool, after: int
) -> None:
    """before: whether two processes with a part each began it; otherwise one did."""
    name = "rloo" if model is None else "ppo"
    stages = {"align": online(name, checkpoint_every=1, iterations=3)}
    if before:
        leader, _ = faulty(work, "SIGTERM", 0, stages, model, sharded=True)
    else:
        words = ["run", write_recipe(stages, model), "--out", "out"]
        (leader,) = together(work, words, 1, [{"FAULT": "SIGTERM"}])
    assert leader.code == 75
    continued(after, sharded=after > 1)


HOOKS = """
from pathlib import Path
from alignkit import hookimpl

@hookimpl
def metrics_logged(run, stage, step, metrics):
    if step == 5 and not Path("stopped").exists():
        Path("stopped").touch()
        run.request_stop("enough for today")
"""


def hooked(work: Path, text: str, **keys: Any) -> list[Ended]:
    """Run an offline stage in two processes with a plugin of these hooks."""
    (work / "hooks.py").write_text(text, encoding="utf-8")
    recipe = write_recipe({"align": offline("sft", "demos", epochs=3, **keys)})
    return together(work, ["run", recipe, "--plugin", "hooks.py", "--out", "out"], 2)


def test_an_error_of_process_0_is_the_error_of_all(work: Path) -> None:
    """Not a lost connection: also where only process 0 works."""
    leader, other = hooked(work, HOOKS.replace("run.request_stop", "raise SystemError"))
    assert leader.code == other.code == 3 or other.code == -15, (leader, other)
    assert "enough for today" in leader.err and "another process" not in leader.err + other.err


def test_a_stopped_offline_stage_continues_where_it_was(work: Path) -> None:
    """The checkpoint is that of the step at which all have stopped."""
    leader, other = hooked(work, HOOKS, checkpoint_every=1000)
    assert leader.code == 75 and other.code in (75, -15), (leader, other)
    found = load_checkpoint(Path("out/align/checkpoints"), pytest.fail)
    assert found["learner"]["steps"] == 5
    try:
        continued(1, words=["--plugin", "hooks.py"])
    finally:
        load_plugins()  # otherwise the hook stops the runs of other tests


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
    leader, other = faulty(work, "", stages={"align": offline("sft", "demos")})
    assert leader.code == 1 and "error: another process of the run has ended" in leader.err, leader
    assert other.code == 5 and "process 1: error: out of memory: " in other.err, other


@pytest.mark.parametrize("what", ["kill", pytest.param("memory", marks=pytest.mark.slow)])
def test_a_process_that_fails_in_the_middle_of_a_pass_ends_the_others(
    work: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for its part of the next layer."""
    layer_call, calls = GradientCheckpointingLayer.__call__, list[str]()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if os.environ.get("FAULT") and type(self).__name__.startswith("FSDP"):
            calls.append(what)
            if len(calls) == 8:  # of two layers: the second one of the third pass behind the first
                if what == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise MemoryError("900 GiB")
        return layer_call(self, *args, **kwargs)

    monkeypatch.setattr(GradientCheckpointingLayer, "__call__", call)
    stages = {"align": offline("sft", "demos", epochs=3)}
    leader, other = faulty(work, what, stages=stages, sharded=True)
    assert "error: another process of the run has ended" in leader.err
    assert other.code == -9 if what == "kill" else "900 GiB" in other.err
