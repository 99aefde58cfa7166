"""Stopped anywhere, a run continues and ends with the same bytes: kill -9, SIGTERM, damaged
checkpoints, two at once.

The killed runs are processes of their own; what continues them runs in this one, which saves the
imports.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from alignkit import cli
from alignkit.training.trainer import load_checkpoint
from alignkit_plugins.report.events import SWITCH
from tests.patience import PATIENCE
from tests.rows import untimed

DATA = Path(__file__).parent.parent / "recipes" / "data"
SFT_STEPS, ITERATIONS = 12, 4
RECIPE = f"""\
model: {{base: tiny, dtype: float32, lora: {{r: 4, lora_alpha: 8}}}}
stages:
  sft:
    algorithm: sft
    data: {{path: {DATA}/demos.jsonl, limit: 24}}
    validation: {{path: {DATA}/demos_validation.jsonl, limit: 4}}
    epochs: 2
    batch_size: 4
    max_length: 1024
    checkpoint_every: 2
  align:
    algorithm: {{ppo: {{kl_target: 0.05, kl_horizon: 20}}}} # adapts: the state must be kept, too
    from: sft
    prompts: {{path: {DATA}/prompts.jsonl, limit: 12}}
    reward: {{length: {{unit: characters, target: 5}}}}
    rollout: {{samples_per_prompt: 2, max_new_tokens: 12}}
    iterations: {ITERATIONS}
    prompts_per_iteration: 6
    batch_size: 4
    mix: {{data: {DATA}/text.txt, weight: 0.1, batch_size: 1}}
  report:
    step: evaluate
    policies: [sft, align]
    rewards: [{{length: {{unit: characters}}}}]
    prompts: {{path: {DATA}/heldout.jsonl, limit: 4}}
    sampling: {{max_new_tokens: 8}}
"""
# A plugin that dies, or asks the run to stop, at a named place: HOOK:STAGE:COUNT in the
# environment. `half` means: in the middle of writing that stage's COUNTth checkpoint.
SABOTEUR = """
import os, signal, time
from alignkit import hookimpl

how, _, place = os.environ.get("SABOTAGE", "").partition("=")
seen = {}

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def at(hook, run, stage):
    seen[hook, stage] = count = seen.get((hook, stage), 0) + 1
    if how == "slow":
        time.sleep(float(place))
    elif place == f"{hook}:{stage}:{count}":
        if how == "interrupt":
            raise KeyboardInterrupt
        if how == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            die() if how == "kill" else run.request_stop("a test")
    elif place == f"half:{stage}:{count + 1}" and hook == "checkpoint_saved":
        from pathlib import Path

        from alignkit.training import trainer as saving

        def half(tensors, name, metadata):
            Path(name).write_bytes(bytes(5000))
            die()

        saving.save_file = half

@hookimpl
def stage_started(run, stage): at("stage_started", run, stage)
@hookimpl
def rollouts_scored(run, stage, iteration, groups): at("rollouts_scored", run, stage)
@hookimpl
def metrics_logged(run, stage, step, metrics): at("metrics_logged", run, stage)
@hookimpl
def checkpoint_saved(run, stage, path): at("checkpoint_saved", run, stage)
@hookimpl
def stage_finished(run, stage, reused): at("stage_finished", run, stage)
@hookimpl
def run_finished(run, error): at("run_finished", run, "")
"""


class Place:
    """Where the runs of this module happen: a recipe, the saboteur, and the adapter of an
    undisturbed run.
    """

    def __init__(self, folder: Path, more: str = ""):
        self.recipe, self.plugin, self.undisturbed = (
            folder / "small.yaml",
            folder / "saboteur.py",
            folder / "whole",
        )
        self.recipe.write_text(RECIPE.replace("kl_horizon: 20", f"kl_horizon: 20{more}"))
        self.plugin.write_text(SABOTEUR)

    def arguments(self, out: Path) -> list[str]:
        return ["run", str(self.recipe), "--plugin", str(self.plugin), "--out", str(out)]

    def here(self, out: Path, sabotage: str = "") -> tuple[int, str]:
        """Run in this process; gives the exit code and what was said."""
        err = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(err):
            patch.setenv("SABOTAGE", sabotage)
            with contextlib.redirect_stdout(io.StringIO()):
                code = cli.main(self.arguments(out))
        return code, err.getvalue()

    def continued(self, out: Path) -> str:
        """The run goes on in this process and ends as the undisturbed one; gives what was said."""
        code, err = self.here(out)
        assert code == 0, err
        self.check(out)
        return err

    def process(self, out: Path, sabotage: str) -> subprocess.Popen[str]:
        """Start a process of its own, with as many threads as this one."""
        environment = {**os.environ, "SABOTAGE": sabotage, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "alignkit", *self.arguments(out)]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def check(self, out: Path) -> None:
        """The run in `out` is the undisturbed one."""
        for stage in ("sft", "align"):
            for name in ("adapter_model.safetensors", "adapter_config.json"):
                file = f"{stage}/adapter/{name}"
                assert (out / file).read_bytes() == (self.undisturbed / file).read_bytes(), file
        assert metrics(out) == metrics(self.undisturbed)
        iterations = range(1, ITERATIONS + 1)
        assert steps(out, "align") == [*iterations]
        for number in iterations:
            file = f"align/rollouts/{number:04d}.jsonl"
            assert (out / file).read_bytes() == (self.undisturbed / file).read_bytes(), file
        leftovers = [path for path in out.rglob("*") if ".alignkit-" in path.name]
        assert leftovers == []


def metrics(out: Path) -> list[dict[str, Any]]:
    """The metrics of both stages, without what depends on the clock."""
    return [row for stage in ("sft", "align") for row in untimed(out / stage / "metrics.jsonl")]


def steps(out: Path, stage: str) -> list[int]:
    return [row["step"] for row in metrics(out) if row["stage"] == stage]


def wait_for(
    true: Callable[[], bool], process: subprocess.Popen[str], seconds: float = PATIENCE
) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The recipe's place, with the undisturbed run in it. One thread: so have the processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNKIT_CACHE", str(tmp_path_factory.mktemp("models")))
        found = Place(tmp_path_factory.mktemp("resume"))
        code, err = found.here(found.undisturbed)
        assert code == 0, err
        yield found
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def stopped_once(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was asked to stop after the third iteration of PPO: it has two checkpoints, 2 and
    3.
    """
    out = tmp_path_factory.mktemp("stopped")
    code, err = place.here(out, "stop=metrics_logged:align:3")
    assert code == 75 and "stopped: a test" in err, err
    return out


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(stopped_once, tmp_path / "copy", symlinks=True))


def test_the_undisturbed_run_is_what_the_tests_need(place: Place) -> None:
    validated = [0, 6, 12]
    assert sorted(steps(place.undisturbed, "sft")) == sorted([*range(1, SFT_STEPS + 1), *validated])
    rows = [row for row in metrics(place.undisturbed) if row["stage"] == "align"]
    assert len({row["kl_coefficient"] for row in rows}) > 1
    assert all("mix/nll" in row for row in rows)


# Where a run is killed, and what its continuation says.
KILLS = {
    "half:align:3": "align: continuing after iteration 2 of 4",  # while ppo saves
    "metrics_logged:sft:8": "sft: continuing after step 6 of 12",
    "half:sft:3": "sft: continuing after step 4 of 12",
    "rollouts_scored:align:3": "align: continuing after iteration 2 of 4",
    "metrics_logged:align:1": "align: from 'sft'",  # before the first checkpoint
    "checkpoint_saved:align:4": "align: continuing after iteration 4 of 4",
    "checkpoint_saved:sft:6": "sft: continuing after step 12 of 12",
    "stage_finished:sft:1": "sft: unchanged, reused",
}


def first_only(cases: Iterable[str], often: int = 1) -> list[Any]:
    """`make slow` has the others."""
    slow = pytest.mark.slow
    return [pytest.param(c, marks=[slow] if n >= often else []) for n, c in enumerate(cases)]


@pytest.mark.silent_bug(
    "resume: data",
    "Prompts that were learned before the restart are learned again.",
    "A run that is killed anywhere ends with the same bytes.",
    "hiyouga/EasyR1#57",
    "OpenRLHF/OpenRLHF#1103",
)
@pytest.mark.parametrize("event", first_only(KILLS))
def test_kill_9_at_a_place(place: Place, tmp_path: Path, event: str) -> None:
    process = place.process(tmp_path, f"kill={event}")
    err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == -signal.SIGKILL, err
    assert KILLS[event] in place.continued(tmp_path)


@pytest.mark.slow
def test_kill_9_with_a_shared_value(place: Place, tmp_path: Path) -> None:
    """The value is a second head on the policy's own states: in the checkpoint it has no adapter of
    its own.
    """
    shared = Place(tmp_path, ", shared_value: true")
    code, err = shared.here(shared.undisturbed)
    assert code == 0, err
    process = shared.process(tmp_path / "killed", "kill=rollouts_scored:align:3")
    err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == -signal.SIGKILL, err
    found = load_checkpoint(tmp_path / "killed" / "align" / "checkpoints", pytest.fail)
    assert [name for name in found["learner"]["weights"] if name.endswith("score.weight")]
    assert "align: continuing after iteration 2 of 4" in shared.continued(tmp_path / "killed")


@pytest.mark.parametrize("name", first_only(["SIGTERM", "SIGHUP", "SIGUSR1"]))
def test_a_signal_ends_with_75_and_the_command(place: Place, tmp_path: Path, name: str) -> None:
    process = place.process(tmp_path, "slow=0.3")
    wait_for((tmp_path / "sft" / "checkpoints" / "000000002").exists, process)
    process.send_signal(getattr(signal, name))
    err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 75, err
    assert f"stopped: {name}" in err and "Traceback" not in err
    assert err.splitlines()[-1].startswith("  to resume: ")  # after the reason
    assert err.endswith(shlex.join(place.arguments(tmp_path)) + "\n")
    assert "sft: continuing after step" in place.continued(tmp_path)


def test_a_signal_while_torch_is_imported_ends_with_75_and_a_report(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "1")
    process = place.process(tmp_path, "")
    assert process.stderr is not None
    while "loading torch" not in (line := process.stderr.readline()):
        assert line, process.wait()
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 75 and "stopped: SIGTERM" in err and "Traceback" not in err, err
    assert err.splitlines()[-1].startswith("  to resume: ") and (tmp_path / "report.html").is_file()
    assert not (tmp_path / "sft").exists()
    place.continued(tmp_path)


@pytest.mark.slow
def test_a_signal_after_the_last_stage_ends_with_75_and_a_report(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "1")
    out = Path(shutil.copytree(place.undisturbed, tmp_path / "copy", symlinks=True))
    process = place.process(out, "signal=run_finished::1")
    err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 75 and "stopped: SIGTERM" in err and "Traceback" not in err, err
    assert err.splitlines()[-1].startswith("  to resume: ") and (out / "report.html").is_file()
    place.continued(out)


STOPS = ("rollouts_scored:align:2", "metrics_logged:sft:5", "stage_started:align:1")


@pytest.mark.parametrize("event", first_only((*STOPS, "stage_started:report:1")))
def test_a_stop_in_any_phase_continues(place: Place, tmp_path: Path, event: str) -> None:
    code, err = place.here(tmp_path, f"stop={event}")
    assert code == 75 and "to resume: " in err, err
    place.continued(tmp_path)


def test_ctrl_c_says_where_and_continues(place: Place, tmp_path: Path) -> None:
    code, err = place.here(tmp_path, "interrupt=rollouts_scored:align:2")
    assert code == 130 and "Traceback" not in err, err
    where = ["interrupted", f"  in iteration 2 of {ITERATIONS}", "  in stage 'align'"]
    assert err.splitlines()[-4:-1] == where and err.splitlines()[-1].startswith("  to resume: ")
    logged = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    assert [line.partition(" ")[2] for line in logged[-4:-1]] == where
    place.continued(tmp_path)


def flip(file: Path) -> None:
    """Change one byte in the middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(bytes(data))


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flip, truncate])
def test_a_damaged_checkpoint_falls_back(
    place: Place, stopped: Path, damage: Callable[[Path], None]
) -> None:
    newest = stopped / "align" / "checkpoints" / "000000003"
    damage(newest / "checkpoint.safetensors")
    err = place.continued(stopped)
    assert f"{newest.name} is damaged" in err and "continuing after iteration 2 of 4" in err


def test_a_stage_whose_checkpoints_are_all_damaged_starts_over_and_says_so(
    place: Place, stopped: Path
) -> None:
    for file in (stopped / "align" / "checkpoints").glob("*/checkpoint.safetensors"):
        truncate(file)
    err = place.continued(stopped)
    assert err.count("starts over") == 2 and "continuing" not in err


def test_two_runs_in_one_folder_are_refused(place: Place, stopped: Path) -> None:
    with FileLock(stopped / ".lock"):
        code, err = place.here(stopped)
    assert code == 1 and "another run is using" in err and "--out" in err
    place.continued(stopped)


@pytest.mark.parametrize("out", ["/proc/alignkit", "{}/a_file/run"])
def test_a_folder_that_cannot_be_made_is_named(place: Place, tmp_path: Path, out: str) -> None:
    (tmp_path / "a_file").write_text("")
    code, err = place.here(Path(out.format(tmp_path)))
    assert code == 5 and f"error: cannot write {out.format(tmp_path)}: " in err, err


def written(out: Path) -> list[tuple[str, int]]:
    """The metrics files and when they were last written to."""
    return sorted((str(path), path.stat().st_mtime_ns) for path in out.glob("*/metrics.jsonl"))


@pytest.mark.slow
def test_killed_again_and_again(place: Place, tmp_path: Path) -> None:
    for delay in (0.0, 0.71, 0.33, 1.13, 0.57):
        before = written(tmp_path)
        process = place.process(tmp_path, "slow=0.2")
        wait_for(lambda before=before: written(tmp_path) != before, process)  # type: ignore[misc]
        time.sleep(delay)
        process.kill()
        process.communicate()
    place.continued(tmp_path)
