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
from several import answers, assert_alike, offline, online, write_recipe

from alignkit import cli
from alignkit.errors import PluginError
from alignkit.io.text import cache_folder
from alignkit.kinds import World
from alignkit.runs.start import world_of
from alignkit_plugins.models import tiny

ROOT = Path(__file__).resolve().parents[2]
SFT = {"sft": offline("sft", "demos")}
LAUNCHED = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "ACCELERATE_MIXED_PRECISION": "no"}
SECOND, ALONE = {"RANK": "1", "WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "1"}
FSDP = {"ACCELERATE_USE_FSDP": "true"}  # the base is cut into parts


@pytest.mark.parametrize(
    ("environment", "world"),
    [
        ({}, World(0, 1)),
        ({**LAUNCHED, **SECOND}, World(1, 2)),
        ({**LAUNCHED, **ALONE}, World(0, 1)),
        ({**LAUNCHED, **SECOND, **FSDP}, World(1, 2, shard=True)),
        # One process remembers that it was asked for parts.
        (FSDP, World(0, 1, shard=True)),
        ({**LAUNCHED, **ALONE, **FSDP}, World(0, 1, shard=True)),
    ],
)
def test_the_environment_says_which_process_this_is(
    environment: dict[str, str], world: World
) -> None:
    assert world_of(environment) == world


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
    base = Path(tiny.source(cache_folder()))
    (shutil.copytree(base, other / base.name) / "a.txt").touch()
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
) -> str:
    """What a command says. number: of a signal that it gets as soon as it has begun."""
    ours = ("RANK", "WORLD", "MASTER")
    env = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "plugins"), env.get("PYTHONPATH", "")])
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    words, pipe = [sys.executable, "-m", *command], subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=env) as process:
        while number and process.poll() is None and not begun():
            time.sleep(0.1)
        if number:
            process.send_signal(number)
        _, err = process.communicate()
    assert process.returncode == code and "Traceback" not in err, err
    return err


ACCELERATE = "accelerate.commands.launch --num_machines=1 --mixed_precision=no --num_processes=2"
ALIGNKIT = "--dynamo_backend=no --main_process_port=0 -m alignkit run recipe.yaml --out two"
LAUNCHERS = [
    f"{ACCELERATE} --multi_gpu {ALIGNKIT}",
    f"{ACCELERATE} --use_fsdp --fsdp_version=2 {ALIGNKIT}",
    "alignkit run recipe.yaml --out two --processes 2",
]


@pytest.mark.slow
@pytest.mark.parametrize("command", LAUNCHERS)
def test_a_launcher_runs_stages_of_every_kind(work: Path, command: str) -> None:
    """And a step in between, which process 0 runs alone."""
    stages = {
        "sft": offline("sft", "demos", validation={"path": "demos.jsonl"}),
        "answers": answers("sft"),
        "again": {**offline("sft", "demos"), "data": {"stage": "answers"}},
        "align": online("grpo", iterations=1),
    }
    recipe = write_recipe(stages)
    assert launched(*command.split()).count("done in") == 5
    assert cli.main(["run", str(recipe), "--out", "one"]) == 0
    assert_alike(Path("two"), Path("one"))


@pytest.mark.slow
@pytest.mark.parametrize(("command", "code"), [(LAUNCHERS[0], 1), (LAUNCHERS[2], 4)])
def test_an_error_is_said_once_and_ends_all(work: Path, command: str, code: int) -> None:
    write_recipe(SFT)
    assert launched(*command.split(), "stages.sft.max_length=2", code=code).count("error: ") == 1


@pytest.mark.slow
def test_a_launcher_that_starts_only_one_is_told(work: Path) -> None:
    write_recipe(SFT)
    err = launched(*f"{ACCELERATE} --cpu {ALIGNKIT}".split(), code=1)
    assert "accelerate was asked for several processes, but started only one" in err


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGUSR1", 75), ("SIGINT", 130)])
def test_a_signal_to_alignkit_reaches_the_processes_that_it_started(
    work: Path, name: str, code: int
) -> None:
    write_recipe({"sft": offline("sft", "demos", epochs=10**5, checkpoint_every=1)})

    def begun() -> bool:
        return any(Path("two").glob("sft/checkpoints/*"))

    number = signal.Signals[name]
    err = launched(*LAUNCHERS[2].split(), code=code, number=number, begun=begun)
    assert err.count("to resume: ") == 1
