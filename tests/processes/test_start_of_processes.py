"""What several processes must agree on before they begin, and how they are started."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from forked import together
from several import SFT, assert_same_as_one, write_recipe

from alignkit import cli
from alignkit.contract.kinds import World
from alignkit.errors import PluginError
from alignkit.io.text import cache_folder
from alignkit.runs.start import world_of
from alignkit_plugins.processes.events import Accelerate, problems_of_device
from tests import rows

ROOT = Path(__file__).resolve().parents[2]
LAUNCHED = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "ACCELERATE_MIXED_PRECISION": "no"}
WORLDS: list[tuple[dict[str, str], World]] = [
    ({}, World(0, 1)),
    ({**LAUNCHED, "RANK": "1", "WORLD_SIZE": "2"}, World(1, 2)),
    ({**LAUNCHED, "RANK": "0", "WORLD_SIZE": "1"}, World(0, 1)),
]


@pytest.mark.parametrize(("variables", "world"), WORLDS)
def test_the_environment_says_which_process_this_is(
    variables: dict[str, str], world: World
) -> None:
    assert world_of(variables) == world


def refused(*words: str | Path, **variables: str) -> str:
    """What process 0 says of a run that is refused before anything is written."""
    leader, other = together(["run", *words], **variables)
    assert leader.code and other.code and not list(Path().glob("out*/*"))
    assert leader.err.count("error: ") == 1 and other.err == ""
    return leader.err


def test_only_several_processes_need_the_plugin(work: Path) -> None:
    words = ["run", str(write_recipe(SFT)), "--no-plugin", "alignkit_distributed", "--out", "out"]
    leader, _ = together(words)
    assert leader.code == PluginError.exit_code
    assert "no plugins provide the default launcher" in leader.err
    assert cli.main(words) == 0


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("sft: {algorithm: sft, data: demos.jsonl, epochs: 0}", "stages.sft.epochs"),
        ("dpo: {algorithm: trl, data: pairs.jsonl}", "trl trains by itself, and in one process"),
    ],
)
def test_a_recipe_that_is_wrong_is_reported_once(work: Path, stages: str, said: str) -> None:
    err = refused(rows.write_recipe(work, stages), "--out", "out")
    assert said in err and "recipe.yaml:" in err


def test_processes_that_run_something_else_are_named_before_anything_is_written(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They differ in their recipe, in the run's folder, and in a package."""
    monkeypatch.setattr(
        "alignkit_plugins.processes.events.versions",
        lambda names: {"peft": f"0.{os.environ['RANK']}"},
    )
    err = refused(write_recipe(SFT), "seed={rank}", "--out", "out-{rank}")
    who = "error: the run is not the same in process 0 and in process 1: "
    assert f"{who}folder, peft, recipe\n" in err


def test_a_stage_of_processes_with_other_base_models_is_not_trained(work: Path) -> None:
    """Process 1 has another folder of the base model, which only the key of the stage tells."""
    (work / "cache-0").symlink_to(cache_folder())
    assert cli.main(["check", str(write_recipe(SFT))]) == 0  # the base is there
    for folder in cache_folder().glob("tiny-*"):
        (shutil.copytree(folder, work / "cache-1" / folder.name) / "a.txt").touch()
    words = ["run", "recipe.yaml", "--out", "out"]
    leader, _ = together(words, ALIGNKIT_CACHE=str(work / "cache-{rank}"))
    assert leader.code == 1 and not Path("out/sft/adapter").exists()
    assert "error: stage 'sft' is not the same in process 0 and in process 1: base\n" in leader.err


def test_each_process_needs_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    few = "3 processes need 3 GPUs, but this machine has 2"
    one = "'device: cuda:1' is one device, but each process needs its own"
    for local, device, said in (("2", "auto", ""), ("3", "auto", few), ("2", "cuda:1", one)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
        recipe: Any = SimpleNamespace(model=SimpleNamespace(device=device))
        found = problems_of_device(recipe, on_cpu=False)
        assert [problem.message for problem in found] == [said] * bool(said)


# Launchers


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the caller has its handlers, variables and logs back."""
    seen: list[tuple[str, str]] = []

    def run(given: Any) -> None:
        seen.append((given.nproc_per_node, os.environ["OMP_NUM_THREADS"]))
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    monkeypatch.setattr("torch.distributed.run.run", run)
    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    monkeypatch.setattr(sys, "argv", ["alignkit"])
    before, log = signal.getsignal(signal.SIGINT), logging.getLogger("torch.distributed")
    for processes, threads in ((5, "7"), (4, None), (10, None)):
        with monkeypatch.context() as patch:
            patch.delenv("OMP_NUM_THREADS", raising=False)
            if threads:
                patch.setenv("OMP_NUM_THREADS", threads)
            assert (
                Accelerate().launch(processes) == 0 and os.environ.get("OMP_NUM_THREADS") == threads
            )
    assert seen == [("5", "7"), ("4", "2"), ("10", "1")]
    assert signal.getsignal(signal.SIGINT) is before and log.level < logging.CRITICAL


def launched(*words: str, code: int = 0, number: int = 0) -> str:
    """What a command says that ends with `code`. number: of a signal that it gets as soon as it has
    written a checkpoint.
    """
    paths = os.pathsep.join([str(ROOT), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-m", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        while number and process.poll() is None and not any(Path().glob("*/sft/checkpoints/*")):
            time.sleep(0.1)
        if number:
            process.send_signal(number)
        _, err = process.communicate()
    assert process.returncode == code, err
    # accelerate's launcher ends with 1 and a traceback of its own.
    assert err.count("Traceback (most recent call last)") == (code == 1), err
    return err


ACCELERATE = "accelerate.commands.launch --num_processes=2 --num_machines=1 --mixed_precision=no"
ALIGNKIT = "--dynamo_backend=no --main_process_port=0 -m alignkit run recipe.yaml"
# And a step in between, which process 0 runs alone.
KINDS = """
sft: {algorithm: sft, data: demos.jsonl, validation: demos.jsonl}
answers:
  step: sample
  policy: sft
  prompts: prompts.jsonl
  samples_per_prompt: 1
  sampling: {max_new_tokens: 4}
again: {algorithm: sft, data: {stage: answers}}
align: {algorithm: grpo, iterations: 1}
"""


@pytest.mark.slow
def test_accelerates_command_runs_stages_of_every_kind(work: Path) -> None:
    recipe = write_recipe(KINDS)
    err = launched(*f"{ACCELERATE} --multi_gpu {ALIGNKIT} --out two".split())
    assert err.count("done in") == 5
    assert_same_as_one(recipe, "two")


@pytest.mark.slow
def test_launchers_start_processes_and_end_with_their_exit_code(work: Path) -> None:
    """Alignkit's own option, and accelerate's command, which may cut the base into parts."""
    recipe, short = write_recipe(SFT), "stages.sft.max_length=2 --out none"
    own = "alignkit run recipe.yaml --processes 2"
    assert launched(*f"{own} --out own".split()).count("done in") == 2
    assert_same_as_one(recipe, "own")
    parts = f"{ACCELERATE} --use_fsdp --fsdp_version=2"
    launched(*f"{parts} {ALIGNKIT} --out parts".split())
    assert_same_as_one(recipe, "parts")
    assert launched(*f"{own} {short}".split(), code=4).count("error: ") == 1
    err = launched(*f"{ACCELERATE} --multi_gpu {ALIGNKIT} {short}".split(), code=1)
    assert err.count("error: ") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGUSR1", 75), ("SIGINT", 130)])
def test_a_signal_to_alignkit_reaches_the_processes_that_it_started(
    work: Path, name: str, code: int
) -> None:
    write_recipe(SFT, epochs=10**5, checkpoint_every=1)
    words = ["alignkit", "run", "recipe.yaml", "--out", "out", "--processes", "2"]
    err = launched(*words, code=code, number=signal.Signals[name])
    assert err.count("to resume: ") == 1
