"""Rows in workers of Ray: the same bytes as without, errors, and with Ray installed a worker that
dies.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignkit.cli import main

HERE = Path(__file__).parent
INSTALLED = any(point.name == "alignkit_ray" for point in entry_points(group="alignkit"))
PLUGIN = [] if INSTALLED else ["--plugin", str(HERE / "alignkit_ray.py")]


def run(out: Path, *more: str) -> int:
    return main(["run", str(HERE / "recipe.yaml"), "--out", str(out), *PLUGIN, *more])


def results(out: Path) -> tuple[bytes, Any]:
    """What the step made: its data, and its summary."""
    record = json.loads((out / "answers" / "stage.json").read_text(encoding="utf-8"))
    return (out / "answers" / "data.jsonl").read_bytes(), record["summary"]


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


def test_the_bytes_are_the_same_and_a_stage_is_reused_wherever_its_rows_were(
    tmp_path: Path,
    fake: FakeRay,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(tmp_path / "dealt") == 0
    assert fake.workers >= 1 and fake.chunks == 3
    monkeypatch.delenv("RAY_ADDRESS")
    assert run(tmp_path / "alone") == 0
    assert results(tmp_path / "alone") == results(tmp_path / "dealt")
    capsys.readouterr()
    assert run(tmp_path / "dealt") == 0
    assert "answers: unchanged, reused" in capsys.readouterr().err


@pytest.mark.usefixtures("fake")
def test_an_error_in_a_worker_is_the_one_of_a_run_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignkit_plugins.ai_feedback.sample.seeds.number", lambda *parts: 1 // 0)
    assert run(tmp_path / "dealt") == 3
    assert "in `Sample.run`: ZeroDivisionError" in capsys.readouterr().err


def test_ray_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert run(tmp_path / "dealt") == 1
    assert "pip install ray" in capsys.readouterr().err


def test_a_worker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    psutil = pytest.importorskip("psutil")
    out, more = tmp_path / "dealt", ["stages.answers.sampling.max_new_tokens=300"]
    words = [sys.executable, "-m", "alignkit", "run", str(HERE / "recipe.yaml"), *PLUGIN, *more]
    environment = {**os.environ, "RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen([*words, "--out", str(out)], env=environment)
    workers: list[Any] = []
    rows = out / "answers/map/responses.jsonl"
    while not workers and driver.poll() is None:
        if rows.exists() and rows.stat().st_size:
            children = psutil.Process(driver.pid).children(recursive=True)
            workers = [child for child in children if "ray::Worker" in " ".join(child.cmdline())]
        time.sleep(0.05)
    workers[0].send_signal(signal.SIGKILL)
    assert driver.wait(600) == 0
    environment.pop("RAY_ADDRESS")
    alone = [*words, "--out", str(tmp_path / "alone")]
    assert subprocess.run(alone, env=environment, check=False).returncode == 0
    assert results(out) == results(tmp_path / "alone")
