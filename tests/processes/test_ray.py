"""Rows in workers of Ray: the same bytes as without, errors, and with Ray installed a worker that
dies.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from patience import PATIENCE
from scoring_recipes import results, sample, write_recipe

from alignkit.cli import main


class RayTaskError(Exception):
    """What Ray raises for an error in a worker."""

    def __init__(self, cause: Exception):
        self.cause = cause


class FakeRay:
    """Ray's functions that the plugin calls, with workers in this process. workers: how many were
    started.
    """

    def __init__(self) -> None:
        self.workers = self.chunks = 0
        self.exceptions = SimpleNamespace(RayTaskError=RayTaskError, RayError=ZeroDivisionError)

    def init(self, **options: Any) -> None: ...

    def shutdown(self) -> None: ...

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, **options: Any) -> Callable[[type], Any]:
        def start(kind: type, work: Any) -> Any:
            self.workers += 1
            worker = kind(work)
            return SimpleNamespace(
                results=SimpleNamespace(remote=lambda rows: lambda: worker.results(rows))
            )

        return lambda kind: SimpleNamespace(remote=lambda work: start(kind, work))

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return references, []

    def get(self, reference: Callable[[], Any]) -> Any:
        self.chunks += 1
        try:
            return reference()
        except Exception as error:
            raise RayTaskError(error) from None


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    return fake


@pytest.mark.usefixtures("one_thread")
def test_the_bytes_are_the_same_and_a_stage_is_reused_wherever_its_rows_were(
    tmp_path: Path,
    fake: FakeRay,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_recipe(tmp_path, 70, {"answers": sample()})
    assert main(["run", str(path), "--out", str(tmp_path / "dealt")]) == 0
    assert (fake.workers, fake.chunks) == (2, 5)
    monkeypatch.delenv("RAY_ADDRESS")
    assert main(["run", str(path), "--out", str(tmp_path / "alone")]) == 0
    assert results(tmp_path / "alone", "answers") == results(tmp_path / "dealt", "answers")
    capsys.readouterr()
    assert main(["run", str(path), "--out", str(tmp_path / "dealt")]) == 0
    assert "answers: unchanged, reused" in capsys.readouterr().err


@pytest.mark.usefixtures("fake")
def test_an_error_in_a_worker_is_the_one_of_a_run_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(tmp_path, 5, {"answers": sample()})
    monkeypatch.setattr("alignkit_plugins.evaluate.sample.seeds.number", lambda *parts: 1 // 0)
    assert main(["run", str(path), "--out", str(tmp_path / "dealt")]) == 3
    assert "in `Sample.run`: ZeroDivisionError" in capsys.readouterr().err


def test_ray_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    path = write_recipe(tmp_path, 5, {"answers": sample()})
    assert main(["run", str(path), "--out", str(tmp_path / "dealt")]) == 1
    assert "install 'alignkit[ray]'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    path, out = (
        write_recipe(tmp_path, 200, {"answers": sample(sampling={"max_new_tokens": 60})}),
        tmp_path / "dealt",
    )
    command = [sys.executable, "-m", "alignkit", "run", str(path), "--out", str(out)]
    environment = {**os.environ, "RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    workers: list[psutil.Process] = []
    until = time.monotonic() + 4 * PATIENCE
    while not workers and driver.poll() is None and time.monotonic() < until:
        if (out / "answers/map/responses.jsonl").exists() and (
            out / "answers/map/responses.jsonl"
        ).stat().st_size:
            children = psutil.Process(driver.pid).children(recursive=True)
            workers = [child for child in children if "ray::Worker" in " ".join(child.cmdline())]
        time.sleep(0.05)
    workers[0].send_signal(signal.SIGKILL)
    _, said = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, said
    environment.pop("RAY_ADDRESS")
    command[-1] = str(tmp_path / "alone")
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    assert results(out, "answers") == results(tmp_path / "alone", "answers")
