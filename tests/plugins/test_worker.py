"""The worker process: it samples what alignkit does, and neither it nor the run outlives the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from patience import PATIENCE

from alignkit.cli import main

STAGE: dict[str, Any] = {
    "algorithm": "rloo",
    "prompts": "rows.jsonl",
    "reward": {"length": {"unit": "characters"}},
    "rollout": {"samples_per_prompt": 2, "max_new_tokens": 6},
    "iterations": 3,
    "prompts_per_iteration": 4,
    "learning_rate": 0.01,
}

pytestmark = pytest.mark.usefixtures("one_thread")


def recipe(folder: Path, engine: Any = "worker", **keys: Any) -> Path:
    rows = [{"prompt": f"is it {n}?" * (n + 1)} for n in range(4)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plain = {"model": {"base": "tiny", "dtype": "float32", "lora": {"r": 2}}, "engine": engine}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**plain, "stages": {"align": STAGE | keys}}))
    return path


def results(folder: Path) -> dict[str, bytes]:
    """The rollouts and the adapter of a run."""
    stage = folder / "align"
    files = [*sorted((stage / "rollouts").iterdir()), stage / "adapter" / "adapter_model.safetensors"]
    return {file.name: file.read_bytes() for file in files}


def workers(run: int) -> list[int]:
    """The worker processes that a process has started."""
    command = ["pgrep", "-P", str(run), "-f", "alignkit_plugins.engines.worker"]
    return [int(line) for line in subprocess.run(command, capture_output=True, check=False).stdout.split()]


def is_alive(process: int) -> bool:
    """Whether a process runs. One that has ended may wait for its parent to ask about it."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return found.stdout.strip()[:1] not in ("", "Z")


def until(done: Callable[[], bool]) -> None:
    waited = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < waited
        time.sleep(0.05)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted run ends with, sampled by alignkit itself."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(["run", str(recipe(folder, "local")), "--out", str(folder / "out")]) == 0
    return results(folder / "out")


def test_a_run_with_a_worker_ends_in_the_same_bytes(tmp_path: Path, whole: dict[str, bytes]) -> None:
    assert main(["run", str(recipe(tmp_path)), "--out", str(tmp_path / "out")]) == 0
    assert results(tmp_path / "out") == whole
    assert not workers(os.getpid()) and not list((tmp_path / "out" / "cache").glob("engine*"))


@pytest.mark.slow
def test_a_worker_that_is_killed_fails_the_stage_which_then_continues(
    tmp_path: Path, whole: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """The plugin kills the worker when the first iteration is complete."""
    plugin = tmp_path / "killer.py"
    plugin.write_text(
        "import os, signal\nfrom alignkit import hookimpl\nfrom alignkit_plugins.engines.worker import Worker\n"
        "asked = Worker.sample\n"
        "@hookimpl\ndef checkpoint_saved(run):\n"
        "    def sample(self, *arguments):\n"
        "        Worker.sample = asked\n"
        "        os.kill(self._process.pid, signal.SIGKILL)\n"
        "        return asked(self, *arguments)\n"
        "    Worker.sample = sample\n"
    )
    command = ["run", str(recipe(tmp_path)), "--out", str(tmp_path / "out")]
    assert main([*command, "--plugin", str(plugin)]) == 1
    err = capsys.readouterr().err
    assert "error: stage 'align', engine 'worker': the worker process was killed by signal 9" in err
    assert "the same command continues the run" in err and "in iteration 2 of 3" in err
    assert main(command) == 0
    assert "continuing after iteration 1 of 3" in capsys.readouterr().err and results(tmp_path / "out") == whole


def test_a_worker_that_cannot_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.executable", str(program := tmp_path / "python"))
    program.write_text("#!/bin/sh\necho no room for a worker >&2\nexit 7\n")
    program.chmod(0o755)
    assert main(["run", str(recipe(tmp_path)), "--out", str(tmp_path / "out")]) == 1
    assert "the worker process ended with exit code 7: no room for a worker" in capsys.readouterr().err


SLOW = [pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGTERM, signal.SIGINT)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, *SLOW])
def test_no_worker_outlives_its_run(tmp_path: Path, whole: dict[str, bytes], number: signal.Signals) -> None:
    """The run is stopped while its worker samples, and then continued."""
    path, out = recipe(tmp_path, iterations=3), tmp_path / "out"
    command = [sys.executable, "-m", "alignkit", "run", str(path), "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}) as run:
        until(lambda: bool(workers(run.pid)) or run.poll() is not None)
        (worker,) = workers(run.pid)
        run.send_signal(number)
        code = run.wait(timeout=PATIENCE)
    assert code == {signal.SIGTERM: 75, signal.SIGINT: 130, signal.SIGKILL: -9}[number]
    until(lambda: not is_alive(worker))
    assert main(["run", str(path), "--out", str(out)]) == 0
    assert results(out) == whole
