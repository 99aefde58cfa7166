"""What several processes must agree on before they begin, and how they are started."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import together
from several import answers, assert_alike, offline, online, reward, write_recipe

from alignkit import cli
from alignkit.errors import PluginError
from alignkit.io.text import cache_folder
from alignkit.kinds import World
from alignkit.runs.start import world_of
from alignkit_plugins.models import tiny

ROOT = Path(__file__).resolve().parents[2]
SFT = {"sft": offline("sft", "demos")}
LAUNCHED = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "ACCELERATE_MIXED_PRECISION": "no"}


def test_the_environment_says_which_process_this_is() -> None:
    assert world_of({}) == World(0, 1)
    assert world_of({**LAUNCHED, "RANK": "1", "WORLD_SIZE": "2"}) == World(1, 2)
    assert world_of({"RANK": "0", "WORLD_SIZE": "1", **LAUNCHED}) == World(0, 1)


def test_a_launcher_that_is_asked_for_fsdp_cuts_the_base_into_parts() -> None:
    asked = {**LAUNCHED, "RANK": "1", "WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}
    assert world_of(asked) == World(1, 2, shard=True)


def test_one_process_remembers_that_it_was_asked_for_parts() -> None:
    asked = {"ACCELERATE_USE_FSDP": "true"}
    assert world_of(asked) == World(0, 1, shard=True)
    assert world_of({**asked, **LAUNCHED, "RANK": "0", "WORLD_SIZE": "1"}) == World(
        0, 1, shard=True
    )


def ended_before_anything_was_written(
    work: Path, recipe: Path, *arguments: str, **how: object
) -> tuple[str, str]:
    leader, other = together(work, ["run", recipe, *arguments, "--out", "out"], **how)  # type: ignore[arg-type]
    assert leader.code and other.code
    assert not Path("out").exists()
    return leader.err, other.err


def test_only_several_processes_need_the_plugin(work: Path) -> None:
    without = ["--no-plugin", "alignkit_distributed", "--out", "out"]
    recipe = write_recipe(SFT)
    leader, _ = together(work, ["run", recipe, *without])
    assert leader.code == PluginError.exit_code
    assert "no launcher 'accelerate'" in leader.err
    assert cli.main(["run", str(recipe), *without]) == 0


def test_an_external_trainer_is_refused(work: Path) -> None:
    trl = {"algorithm": "trl", "data": "pairs.jsonl"}
    err, _ = ended_before_anything_was_written(work, write_recipe({"dpo": trl}))
    assert "trl trains by itself, and in one process" in err and "recipe.yaml:" in err


def test_processes_with_other_files_are_named_before_anything_is_written(work: Path) -> None:
    """Process 1 is in another folder."""
    other = work / "elsewhere"
    other.mkdir()
    recipe = write_recipe(SFT)
    for name in ("recipe.yaml", "demos.jsonl"):
        (other / name).write_text((work / name).read_text(encoding="utf-8"), encoding="utf-8")
    err, _ = ended_before_anything_was_written(work, recipe, folders=[work, other])
    assert "error: the run is not the same in process 0 and in process 1: " in err
    assert "folder" in err


def test_a_stage_of_processes_with_other_base_models_is_not_trained(work: Path) -> None:
    """Process 1 has another folder of the base model, which only the key of the stage tells."""
    recipe, other = write_recipe(SFT), work / "cache"
    (
        shutil.copytree(tiny.source(cache_folder()), other / Path(tiny.source(cache_folder())).name)
        / "a.txt"
    ).touch()
    leader, _ = together(
        work, ["run", recipe, "--out", "out"], variables=[{}, {"ALIGNKIT_CACHE": str(other)}]
    )
    assert leader.code == 1 and not Path("out/sft/adapter").exists()
    assert "error: stage 'sft' is not the same in process 0 and in process 1: base\n" in leader.err


def test_processes_with_other_versions_are_named(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "alignkit_plugins.processes.events.versions",
        lambda names: {"peft": f"0.{os.environ['RANK']}"},
    )
    err, _ = ended_before_anything_was_written(work, write_recipe(SFT))
    assert err.count("peft") == 1


def test_a_recipe_that_is_wrong_is_reported_once(work: Path) -> None:
    err, other = ended_before_anything_was_written(work, write_recipe(SFT), "stages.sft.epochs=0")
    assert err.count("error: ") == 1 and other == ""


# Launchers


def launched(
    *command: str, code: int = 0, number: int = 0, begun: Callable[[], object] = bool
) -> subprocess.CompletedProcess[str]:
    """number: of a signal that it gets as soon as it has begun."""
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("RANK", "WORLD", "MASTER"))
    }
    paths = os.pathsep.join([str(ROOT), str(ROOT / "plugins"), clean.get("PYTHONPATH", "")])
    env = {**clean, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    words = [sys.executable, "-m", *command]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        while number and process.poll() is None and not begun():
            time.sleep(0.1)
        if number:
            process.send_signal(number)
        out, err = process.communicate()
    assert process.returncode == code, err
    return subprocess.CompletedProcess(words, code, out, err)


ACCELERATE = [
    "accelerate.commands.launch",
    "--num_processes=2",
    "--num_machines=1",
    "--mixed_precision=no",
]
ALIGNKIT = ["--dynamo_backend=no", "--main_process_port=0", "-m", "alignkit", "run"]


@pytest.mark.slow
def test_accelerates_command_runs_stages_of_every_kind(work: Path) -> None:
    """And a step in between, which process 0 runs alone."""
    stages = {
        "sft": offline("sft", "demos", validation={"path": "demos.jsonl"}),
        "answers": answers("sft"),
        "again": {**offline("sft", "demos"), "data": {"stage": "answers"}},
        "align": online("grpo", reward=reward("letters"), iterations=1),
    }
    recipe = write_recipe(stages)
    done = launched(*ACCELERATE, "--multi_gpu", *ALIGNKIT, str(recipe), "--out", "two")
    assert done.stderr.count("done in") == 5 and "Traceback" not in done.stderr
    assert cli.main(["run", str(recipe), "--out", "one"]) == 0
    assert_alike(Path("two"), Path("one"))


@pytest.mark.slow
def test_alignkits_own_option_starts_processes_and_has_their_exit_code(work: Path) -> None:
    recipe = str(write_recipe(SFT))
    done = launched("alignkit", "run", recipe, "--out", "two", "--processes", "2")
    assert done.stderr.count("done in") == 2 and "Traceback" not in done.stderr
    assert cli.main(["run", recipe, "--out", "one"]) == 0
    assert_alike(Path("two"), Path("one"))
    short = ["stages.sft.max_length=2", "--out", "three"]
    done = launched("alignkit", "run", recipe, *short, "--processes", "2", code=4)
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGUSR1", 75), ("SIGINT", 130)])
def test_a_signal_to_alignkit_reaches_the_processes_that_it_started(
    work: Path, name: str, code: int
) -> None:
    recipe = str(write_recipe({"sft": offline("sft", "demos", epochs=10**5, checkpoint_every=1)}))
    words = ("alignkit", "run", recipe, "--out", "out", "--processes", "2")
    number = signal.Signals[name]
    done = launched(
        *words, code=code, number=number, begun=lambda: any(Path("out").glob("sft/checkpoints/*"))
    )
    assert done.stderr.count("to resume: ") == 1 and "Traceback" not in done.stderr


@pytest.mark.slow
def test_accelerates_command_may_start_one_or_cut_the_base_into_parts(work: Path) -> None:
    recipe = str(write_recipe(SFT))
    launched(*ACCELERATE, "--use_fsdp", "--fsdp_version=2", *ALIGNKIT, recipe, "--out", "two")
    assert cli.main(["run", recipe, "--out", "one"]) == 0
    assert_alike(Path("two"), Path("one"))
    done = launched(*ACCELERATE, "--cpu", *ALIGNKIT, recipe, "--out", "three", code=1)
    assert "accelerate was asked for several processes, but started only one" in done.stderr


@pytest.mark.slow
def test_an_error_is_said_once_and_ends_all(work: Path) -> None:
    recipe = str(write_recipe(SFT))
    done = launched(
        *ACCELERATE, "--multi_gpu", *ALIGNKIT, recipe, "stages.sft.max_length=2", code=1
    )
    assert done.stderr.count("error: ") == 1
