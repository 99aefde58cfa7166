"""What several processes must agree on before they begin, and how they are started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import assert_alike, offline, online, reward, write_recipe
from forked import together

from alignkit import cli
from alignkit.errors import PluginError, RecipeError, RunFailed
from alignkit.recipe.schema import LauncherKeys
from alignkit.runs.world import World, shard_of, world_of
from alignkit_distributed.join import check_alike

ROOT = Path(__file__).resolve().parents[2]
SFT = {"sft": offline("sft", "demos")}
LAUNCHED = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "ACCELERATE_MIXED_PRECISION": "no"}


def test_the_environment_says_which_process_this_is() -> None:
    assert world_of({}) == World(0, 1)
    assert world_of({**LAUNCHED, "RANK": "1", "WORLD_SIZE": "2"}) == World(1, 2)
    assert world_of({"RANK": "0", "WORLD_SIZE": "1", **LAUNCHED}) == World(0, 1)


def test_a_launcher_that_started_one_process_of_several_is_named() -> None:
    with pytest.raises(RecipeError, match=r"asked for several processes(.|\n)*--multi_gpu"):
        world_of(LAUNCHED)


def test_a_launcher_that_is_asked_for_fsdp_cuts_the_base_into_parts() -> None:
    asked = {**LAUNCHED, "RANK": "1", "WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}
    assert world_of({**asked, "FSDP_VERSION": "2"}) == World(1, 2, shard="fsdp")
    with pytest.raises(RecipeError, match=r"the first version of FSDP(.|\n)*--fsdp_version 2"):
        world_of({**asked, "FSDP_VERSION": "1"})


def test_one_process_remembers_that_it_was_asked_for_parts() -> None:
    asked = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    assert world_of(asked) == World(0, 1, shard="fsdp")
    assert world_of({**asked, **LAUNCHED, "RANK": "0", "WORLD_SIZE": "1"}) == World(0, 1, shard="fsdp")


@pytest.mark.parametrize(
    "cuts, said",
    [
        (["fsdp", None], "process 0 cuts base models with fsdp, but process 1 with nothing"),
        ([None, None, "fsdp"], "process 0 cuts base models with nothing, but process 2 with fsdp"),
    ],
)
def test_processes_that_cut_differently_are_named(cuts: Any, said: str) -> None:
    with pytest.raises(RunFailed, match=said):
        check_alike(cuts)
    check_alike(cuts[:1] * 3)


@pytest.mark.parametrize("name", ["Megatron-LM", "DeepSpeed"])
def test_what_alignkit_does_not_use_is_refused(name: str) -> None:
    asked = {f"ACCELERATE_USE_{name.upper().replace('-', '_')}": "true"}
    for started in ({}, {**LAUNCHED, "RANK": "1", "WORLD_SIZE": "2"}):
        with pytest.raises(RecipeError, match=rf"asked for {name}, which alignkit does not use(.|\n)*--fsdp_version 2"):
            world_of({**started, **asked})


def test_the_recipe_or_the_launcher_says_what_cuts_the_base() -> None:
    alone, fsdp = World(0, 2), World(0, 2, "fsdp")
    assert shard_of(None, alone) is None and shard_of(LauncherKeys(), alone) is None
    assert shard_of(LauncherKeys(shard=True), alone) == shard_of(LauncherKeys(shard="fsdp"), alone) == "fsdp"
    assert shard_of(LauncherKeys(), fsdp) == shard_of(None, fsdp) == "fsdp"


def ended_before_anything_was_written(work: Path, recipe: Path, *arguments: str, **how: object) -> tuple[str, str]:
    leader, other = together(work, ["run", recipe, *arguments, "--out", "out"], **how)  # type: ignore[arg-type]
    assert leader.code and other.code
    assert not Path("out").exists()
    return leader.err, other.err


def test_a_number_of_processes_that_does_not_fit_is_an_error(work: Path) -> None:
    err, other = ended_before_anything_was_written(work, write_recipe(SFT, launcher={"processes": 3}))
    assert "error: the recipe asks for 3 processes, but the launcher started 2" in err
    assert "launcher.processes=2" in err and other == ""


def test_a_recipe_that_names_no_number_leaves_it_to_the_launcher(work: Path) -> None:
    """One that only asks for parts once asked for one process, without saying so."""
    ended = together(work, ["run", write_recipe(SFT, launcher={"shard": True}), "--out", "out"])
    assert [process.code for process in ended] == [0, 0], ended


def test_a_notebook_cannot_start_several_processes(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignkit.notebook import run

    recipe = write_recipe(SFT, launcher={"processes": 2})
    with pytest.raises(RecipeError, match=r"asks for 2 processes, but this is the only one(.|\n)*--processes N"):
        run(recipe, out="out")
    assert not (Path("out") / "sft").exists()


def test_validate_knows_what_several_processes_refuse(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checked = ["check", str(write_recipe(SFT)), "launcher.processes=2", "launcher.shard=true"]
    assert cli.main(checked) == 0
    assert cli.main([*checked, "model.quantization=nf4"]) == 2
    assert "a quantized base model cannot be cut into parts" in capsys.readouterr().err


def test_only_several_processes_need_the_plugin(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("alignkit.plugins._current", None)
    without = [str(write_recipe(SFT)), "--no-plugin", "alignkit_distributed"]
    assert cli.main(["check", *without]) == 0
    for command in (["check", *without], ["run", *without, "--out", "out"]):
        assert cli.main([*command, "launcher.processes=2"]) == PluginError.exit_code
        assert "launcher 'accelerate' cannot be used: plugin 'alignkit_distributed'" in capsys.readouterr().err
    assert not Path("out").exists()


def test_an_external_trainer_is_refused(work: Path) -> None:
    err, _ = ended_before_anything_was_written(
        work, write_recipe({"sft": offline({"trl": {"trainer": "sft"}}, "demos")})
    )
    assert "trl trains by itself, and in one process" in err and "recipe.yaml:" in err


def test_processes_with_other_files_are_named_before_anything_is_written(work: Path) -> None:
    """Process 1 sees another line in a data file, and another recipe."""
    other = work / "elsewhere"
    other.mkdir()
    recipe = write_recipe(SFT)
    for name in ("recipe.yaml", "demos.jsonl"):
        (other / name).write_text((work / name).read_text(encoding="utf-8"), encoding="utf-8")
    with (other / "demos.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prompt": "more", "completion": "bread"}\n')
    err, _ = ended_before_anything_was_written(work, recipe, folders=[work, other])
    assert "error: the run is not the same in process 0 and in process 1: " in err
    assert "data." in err and "folder" in err


def test_processes_with_other_versions_are_named(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignkit_distributed.together.versions", lambda names: {"peft": f"0.{os.environ['RANK']}"})
    err, _ = ended_before_anything_was_written(work, write_recipe(SFT))
    assert "versions.peft 0.0 -> 0.1" in err


def test_a_recipe_that_is_wrong_is_reported_once(work: Path) -> None:
    err, other = ended_before_anything_was_written(work, write_recipe(SFT), "stages.sft.epochs=0")
    assert err.count("error: ") == 1 and other == ""


# Launchers


def launched(*command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("RANK", "WORLD", "MASTER"))}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "plugins"), clean.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        check=False,
        env={**clean, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
    )
    assert done.returncode == code, done.stderr
    return done


def test_a_recipe_with_a_launcher_starts_accelerates(work: Path) -> None:
    """A stage of every kind, and a step in between, which process 0 runs alone."""
    stages = {
        "sft": offline("sft", "demos", validation={"path": "demos.jsonl"}),
        "answers": {
            "step": "sample",
            "policy": "sft",
            "prompts": {"path": "prompts.jsonl"},
            "samples_per_prompt": 1,
            "sampling": {"max_new_tokens": 4},
        },
        "again": {**offline("sft", "demos"), "data": {"stage": "answers"}},
        "align": online("grpo", reward=reward("letters"), iterations=1),
    }
    recipe = write_recipe(stages, launcher={"processes": 2})
    done = launched("alignkit", "run", str(recipe), "--out", "two")
    assert (
        done.stderr.count("done in") == 5 and "Traceback" not in done.stderr and "torch.distributed" not in done.stderr
    )
    assert cli.main(["run", str(recipe), "launcher.processes=1", "--out", "one"]) == 0
    assert_alike(Path("two"), Path("one"))


@pytest.mark.slow
def test_accelerates_own_command_starts_a_run(work: Path) -> None:
    recipe = write_recipe(SFT)
    accelerate = ["accelerate.commands.launch", "--num_processes=2", "--num_machines=1", "--mixed_precision=no"]
    run = ["--dynamo_backend=no", "--main_process_port=0", "-m", "alignkit", "run", str(recipe), "--out"]
    launched(*accelerate, "--multi_gpu", *run, "two")
    assert cli.main(["run", str(recipe), "--out", "one"]) == 0
    assert_alike(Path("two"), Path("one"))
    done = launched(*accelerate, "--cpu", *run, "three", code=1)
    assert "accelerate was asked for several processes, but started only one" in done.stderr


@pytest.mark.slow
def test_accelerates_own_command_cuts_the_base_into_parts(work: Path) -> None:
    accelerate = ["accelerate.commands.launch", "--num_processes=2", "--num_machines=1", "--mixed_precision=no"]
    fsdp = ["--dynamo_backend=no", "--main_process_port=0", "--use_fsdp", "--fsdp_version=2", "-m", "alignkit", "run"]
    launched(*accelerate, *fsdp, str(write_recipe(SFT)), "--out", "two")
    assert cli.main(["run", "recipe.yaml", "--out", "one"]) == 0
    assert_alike(Path("two"), Path("one"))


@pytest.mark.slow
def test_the_launchers_exit_code_is_that_of_the_process_that_failed(work: Path) -> None:
    done = launched("alignkit", "run", str(write_recipe(SFT)), "stages.sft.max_length=2", "--processes", "2", code=4)
    assert done.stderr.count("error: ") == 1
