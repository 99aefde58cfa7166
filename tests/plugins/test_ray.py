"""The executor `ray`: its options and errors, and with Ray installed the bytes, faults and ends of its runs."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from judge_server import Reply, serving
from patience import PATIENCE

from alignkit import RunFailed
from alignkit.cli import main
from alignkit_plugins.engines.ray import Ray

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
from scoring_recipes import judged, results, sample, verdict, write_recipe

with_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")


def validated(folder: Path, capsys: pytest.CaptureFixture[str], executor: Any, stage: Any = None) -> str:
    """What `alignkit check` says of a recipe with this executor."""
    path = write_recipe(folder, 3, {"answers": {**(stage or sample()), "executor": executor}})
    assert main(["check", str(path)]) != 0
    said = capsys.readouterr()
    return said.out + said.err


@pytest.mark.parametrize(
    ("executor", "message"),
    [
        ({"ray": {"workers": 0}}, "workers"),
        ({"ray": {"address": "http://head:6379"}}, "address 'http://head:6379' must be `auto` or HOST:PORT"),
        ({"ray": {"worker": 2}}, "did you mean 'workers'?"),
        ({"ray": {"block_rows": 0}}, "block_rows"),
        ("rey", "did you mean 'ray'?"),
        ("loca", "did you mean 'local'?"),
    ],
)
def test_mistakes_in_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str], executor: Any, message: str) -> None:
    said = validated(tmp_path, capsys, executor)
    assert message in said and "recipe.yaml:" in said


def test_a_step_without_rows_has_no_executor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merge = {"step": "merge", "model": "rm", "executor": "ray"}
    rm = {"algorithm": "reward_model", "data": "pairs.jsonl"}
    assert main(["check", str(write_recipe(tmp_path, 3, {"rm": rm, "merged": merge}))]) == 2
    said = capsys.readouterr().err
    assert "step 'merge' works on no rows one by one" in said and "judge_pairs, sample" in said


def test_a_training_stage_has_no_executor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = validated(tmp_path, capsys, "ray", {"algorithm": "reward_model", "data": "pairs.jsonl"})
    assert "executor" in said


def test_a_missing_package_is_named_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RunFailed, match=r"needs the package ray\nhelp: .* install 'ray"):
        Ray(Ray.Options()).check(tmp_path)


def test_an_address_at_which_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(RunFailed, match=f"no Ray cluster answers at {address}"):
            Ray(Ray.Options(address=address)).check(tmp_path)


# With Ray


def command(path: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "alignkit", "run", str(path), "--out", str(out)]


def wait_for(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def processes(driver: int, name: str = "") -> list[int]:
    """The live processes of the driver's session with Ray's names. Ray's own are in the driver's session."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline())
            ours = os.getsid(process.pid) == driver or process.environ().get("ALIGNKIT_TEST_RUN") == str(driver)
            if ours and process.pid != driver and name in words and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.Error, OSError):
            pass
    return found


def started(path: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(command(path, out), stderr=subprocess.PIPE, text=True, start_new_session=True)


@with_ray
@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_nothing_is_paid_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret-of-the-judge")
    with serving(lambda request: Reply(body=verdict(request), pause=0.2)) as server:
        executor = {"ray": {"block_rows": 16, "workers": 2}}
        path = write_recipe(tmp_path, 60, {"pairs": judged(server.url, executor=executor)})
        driver = started(path, tmp_path / "dealt")
        wait_for(lambda: len(server.requests) > 20 or driver.poll() is not None)
        (worker, *_) = processes(driver.pid, "MapWorker")
        os.kill(worker, signal.SIGKILL)
        _, said = driver.communicate(timeout=PATIENCE)
        assert driver.returncode == 0, said
        counts = Counter(str(request["messages"]) for request in server.requests)
        assert len(counts) == 120 and sum(counts.values()) <= 124  # the four that were on their way
        assert wait_for(lambda: not processes(driver.pid))
        alone = without_executor(path, tmp_path / "alone")
    assert results(alone, "pairs") == results(tmp_path / "dealt", "pairs")
    stored = b"".join(file.read_bytes() for file in (tmp_path / "dealt").rglob("*") if file.is_file())
    assert b"secret-of-the-judge" not in stored and "secret" not in said


def without_executor(path: Path, out: Path) -> Path:
    recipe = yaml.safe_load(path.read_text())
    for stage in recipe["stages"].values():
        stage.pop("executor", None)
    path.write_text(yaml.safe_dump(recipe))
    assert main(["run", str(path), "--out", str(out)]) == 0
    return out


@with_ray
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_run_that_ends_leaves_no_process_and_continues(tmp_path: Path, number: int) -> None:
    many = sample(max_new_tokens=60, executor={"ray": {"block_rows": 16}})
    path, out = write_recipe(tmp_path, 200, {"answers": many}), tmp_path / "dealt"
    driver = started(path, out)
    wait_for(lambda: list(out.glob("answers/map/responses/block-*")) or driver.poll() is not None)
    driver.send_signal(number)
    _, said = driver.communicate(timeout=PATIENCE)
    assert driver.returncode != 0 and "Traceback" not in said
    wait_for(lambda: not processes(driver.pid))
    kept = {file: file.read_bytes() for file in out.glob("answers/map/responses/block-*.jsonl")}
    assert subprocess.run(command(path, out), check=False).returncode == 0
    assert all(file.read_bytes().startswith(before) for file, before in kept.items())
    assert results(out, "answers") == results(without_executor(path, tmp_path / "alone"), "answers")
