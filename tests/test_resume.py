"""Stopped anywhere, a run continues and ends with the same bytes: kill -9, SIGTERM, damaged
checkpoints, two at once.

The killed runs are forks; what continues them runs in this process, which saves the imports.
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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from alignkit import cli
from alignkit_plugins.report.events import SWITCH
from tests.killed import forked
from tests.patience import PATIENCE
from tests.rows import demos, prompts, untimed, write_rows

ITERATIONS = 4
RECIPE = f"""\
model: {{base: tiny, dtype: float32, lora: {{r: 4, lora_alpha: 8}}}}
stages:
  sft:
    algorithm: sft
    data: demos.jsonl
    validation: held_out.jsonl
    epochs: 2
    batch_size: 4
    checkpoint_every: 2
  align:
    algorithm: {{ppo: {{kl_target: 0.05, kl_horizon: 20}}}} # adapts: the state must be kept, too
    from: sft
    prompts: prompts.jsonl
    reward: {{length: {{unit: characters, target: 5}}}}
    rollout: {{samples_per_prompt: 2, max_new_tokens: 8}}
    iterations: {ITERATIONS}
    prompts_per_iteration: 3
    batch_size: 2
    mix: {{data: held_out.jsonl, objective: sft, weight: 0.1, batch_size: 1}}
  report:
    step: evaluate
    policies: [sft, align]
    rewards: [{{length: {{unit: characters}}}}]
    prompts: held_out.jsonl
    sampling: {{max_new_tokens: 4}}
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
    """Where the runs of this module happen: a recipe, the saboteur, and an undisturbed run."""

    def __init__(self, folder: Path):
        texts = [f"is it {n}?" for n in range(32)]
        write_rows(folder / "demos.jsonl", demos(texts[:24]))
        write_rows(folder / "held_out.jsonl", demos(texts[24:28]))
        write_rows(folder / "prompts.jsonl", prompts(texts[20:]))
        (folder / "small.yaml").write_text(RECIPE)
        (folder / "saboteur.py").write_text(SABOTEUR)
        plugin = ["--plugin", str(folder / "saboteur.py"), "--out"]
        self.command, self.undisturbed = ["run", str(folder / "small.yaml"), *plugin], folder / "w"

    def here(self, out: Path, sabotage: str = "") -> tuple[int, str]:
        """Run in this process; gives the exit code and what was said."""
        err = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(err):
            patch.setenv("SABOTAGE", sabotage)
            with contextlib.redirect_stdout(io.StringIO()):
                code = cli.main([*self.command, str(out)])
        return code, err.getvalue()

    def killed(self, out: Path, event: str) -> None:
        assert forked(*self.command, out, SABOTAGE=f"kill={event}") == -signal.SIGKILL

    def continued(self, out: Path) -> str:
        """The run goes on in this process and ends as the undisturbed one; gives what was said."""
        code, err = self.here(out)
        assert code == 0, err
        assert result(out) == result(self.undisturbed)
        assert not [path for path in out.rglob("*") if ".alignkit-" in path.name]
        return err

    def process(self, out: Path, sabotage: str) -> subprocess.Popen[str]:
        """Start a process of its own, with as many threads as this one."""
        environment = {**os.environ, "SABOTAGE": sabotage, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "alignkit", *self.command, str(out)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def result(out: Path) -> Any:
    """The adapters, samples and metrics of both stages, without what depends on the clock."""
    files = [*out.glob("*/adapter/adapter*"), *out.glob("align/rollouts/*")]
    assert len(files) == 4 + ITERATIONS
    metrics = [untimed(out / stage / "metrics.jsonl") for stage in ("sft", "align")]
    return {file.relative_to(out): file.read_bytes() for file in files}, metrics


@pytest.fixture(scope="module")
def place(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The recipe's place, with the undisturbed run in it. One thread: so have the processes."""
    found = Place(tmp_path_factory.mktemp("resume"))
    code, err = found.here(found.undisturbed)
    assert code == 0, err
    return found


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


# Where a run is killed, and what its continuation says: while ppo saves, before the first
# checkpoint, after the last one, and so on.
KILLS = yaml.safe_load("""
half:align:3: "align: continuing after iteration 2 of 4"
metrics_logged:sft:9: "sft: continuing after step 6 of 12"
half:sft:3: "sft: continuing after step 4 of 12"
rollouts_scored:align:3: "align: continuing after iteration 2 of 4"
metrics_logged:align:1: "align: from 'sft'"
checkpoint_saved:align:4: "align: continuing after iteration 4 of 4"
checkpoint_saved:sft:6: "sft: continuing after step 12 of 12"
stage_finished:sft:1: "sft: unchanged, reused"
""")


def first_only(cases: Iterable[str]) -> list[Any]:
    """`make slow` has the others."""
    first, *others = cases
    return [first, *[pytest.param(case, marks=pytest.mark.slow) for case in others]]


@pytest.mark.silent_bug(
    "resume: data",
    "Prompts that were learned before the restart are learned again.",
    "A run that is killed anywhere ends with the same bytes.",
    "hiyouga/EasyR1#57",
    "OpenRLHF/OpenRLHF#1103",
)
@pytest.mark.parametrize("event", first_only(KILLS))
def test_kill_9_at_a_place(place: Place, tmp_path: Path, event: str) -> None:
    place.killed(tmp_path, event)
    assert KILLS[event] in place.continued(tmp_path)


@pytest.mark.slow
def test_killed_again_and_again(place: Place, tmp_path: Path) -> None:
    for event in KILLED.split():
        place.killed(tmp_path, event)
    place.continued(tmp_path)


KILLED = """
half:sft:2 metrics_logged:sft:1 checkpoint_saved:sft:1 stage_started:align:1 half:align:2
rollouts_scored:align:1 checkpoint_saved:align:2 stage_started:report:1
"""


@pytest.mark.parametrize("name", first_only(["SIGUSR1", "SIGHUP"]))
def test_a_signal_ends_with_75_and_the_command(place: Place, tmp_path: Path, name: str) -> None:
    process = place.process(tmp_path, "slow=0.3")
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "sft" / "checkpoints" / "000000002").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(getattr(signal, name))
    err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 75, err
    assert f"stopped: {name}" in err and "Traceback" not in err
    assert err.splitlines()[-1].startswith("  to resume: ")  # after the reason
    assert err.endswith(shlex.join([*place.command, str(tmp_path)]) + "\n")
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
    ended_with_a_report(tmp_path, process.wait(PATIENCE), process.stderr.read())
    assert not (tmp_path / "sft").exists()


def test_a_signal_after_the_last_stage_ends_with_75_and_a_report(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "1")
    out = Path(shutil.copytree(place.undisturbed, tmp_path / "copy", symlinks=True))
    ended_with_a_report(out, *place.here(out, "signal=run_finished::1"))


def ended_with_a_report(out: Path, code: int, err: str) -> None:
    assert code == 75 and "stopped: SIGTERM" in err and "Traceback" not in err, err
    assert err.splitlines()[-1].startswith("  to resume: ") and (out / "report.html").is_file()


@pytest.mark.parametrize("event", ["rollouts_scored:align:2", "metrics_logged:sft:5"])
def test_a_stop_in_any_phase_continues(place: Place, tmp_path: Path, event: str) -> None:
    code, err = place.here(tmp_path, f"stop={event}")
    assert code == 75 and "to resume: " in err, err
    place.continued(tmp_path)


def test_ctrl_c_says_where(place: Place, tmp_path: Path) -> None:
    code, err = place.here(tmp_path, "interrupt=rollouts_scored:align:2")
    assert code == 130 and "Traceback" not in err, err
    where = ["interrupted", f"  in iteration 2 of {ITERATIONS}", "  in stage 'align'"]
    assert err.splitlines()[-4:-1] == where and err.splitlines()[-1].startswith("  to resume: ")
    logged = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    assert [line.partition(" ")[2] for line in logged[-4:-1]] == where


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


def test_a_folder_that_cannot_be_made_is_named(place: Place, tmp_path: Path) -> None:
    (tmp_path / "a_file").write_text("")
    out = tmp_path / "a_file" / "run"
    code, err = place.here(out)
    assert code == 5 and f"error: cannot write {out}: " in err, err
