"""Executors in a run: the same bytes as without one, errors, and a stop."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from patience import PATIENCE
from scoring_recipes import CODE, EXECUTORS, TRAINED, judged, results, sample, verdict, write_recipe

from alignkit.cli import main
from alignkit.io.digest import versions
from alignkit.runs.run import Run
from alignkit.stopping import should_stop
from alignkit_distributed.row_work import LOOK, StageWork

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins"))
from judge_server import Reply, serving

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"here": {"block_rows": 16}}


def run(folder: Path, name: str, executor: Any = None, expected: int = 0, stage: str = "answers") -> Path:
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["stages"][stage].pop("executor", None)
    recipe["stages"][stage] |= {} if executor is None else {"executor": executor}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    out = folder / name
    assert main(["run", str(folder / "recipe.yaml"), "--out", str(out), "--plugin", str(EXECUTORS)]) == expected
    return out


def test_samples_and_scores_are_the_same_bytes_as_without_an_executor(tmp_path: Path) -> None:
    write_recipe(tmp_path, 70, {"answers": sample()})
    alone, dealt = run(tmp_path, "alone"), run(tmp_path, "dealt", SMALL)
    assert results(alone, "answers") == results(dealt, "answers")
    assert len(list((dealt / "answers" / "map" / "responses").glob("block-*"))) == 5
    assert len(list((dealt / "answers" / "map" / "scores-0").glob("block-*"))) == 2  # 64 groups are scored at once


def test_scores_of_a_reward_model_are_the_same_bytes(tmp_path: Path) -> None:
    write_recipe(tmp_path, 70, {"rm": TRAINED, "answers": sample(reward="rm")})
    alone, dealt = run(tmp_path, "alone"), run(tmp_path, "dealt", SMALL)
    assert results(alone, "answers") == results(dealt, "answers")


def test_a_stage_is_reused_whatever_carries_out_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_recipe(tmp_path, 5, {"answers": sample()})
    run(tmp_path, "run")
    run(tmp_path, "run", SMALL)
    assert "answers: unchanged, reused" in capsys.readouterr().err


def test_a_judge_is_paid_once_for_a_question_and_its_verdicts_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret-of-the-judge")
    with serving(lambda request: Reply(body=verdict(request))) as server:
        write_recipe(tmp_path, 40, {"pairs": judged(server.url)})
        alone = run(tmp_path, "alone", stage="pairs")
        asked = Counter(str(request["messages"]) for request in server.requests)
        server.requests.clear()
        dealt = run(tmp_path, "dealt", SMALL, stage="pairs")
        assert Counter(str(request["messages"]) for request in server.requests) == asked
    assert results(alone, "pairs") == results(dealt, "pairs")
    stored = b"".join(path.read_bytes() for path in dealt.rglob("*") if path.is_file())
    assert b"secret-of-the-judge" not in stored


def test_a_row_that_fails_has_the_error_that_it_has_without_an_executor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_recipe(tmp_path, 20, {"answers": sample()})
    (tmp_path / "reward.py").write_text(CODE.replace('"forbidden" in text', "True"))
    run(tmp_path, "alone", expected=1)
    alone = capsys.readouterr().err
    run(tmp_path, "dealt", SMALL, expected=1)
    dealt = capsys.readouterr().err
    error = next(line for line in alone.splitlines() if "ValueError: forbidden" in line)
    assert "reward.py" in error and error in dealt.splitlines() and "Traceback" not in dealt


def test_workers_that_are_asked_to_stop_do_not_stop_the_runs_own_process(tmp_path: Path) -> None:
    """An executor may call the work where the run is, and a program may run another recipe there."""
    write_recipe(tmp_path, 20, {"answers": sample()})
    (tmp_path / "reward.py").write_text(CODE.replace('"forbidden" in text', "True"))
    run(tmp_path, "dealt", SMALL, expected=1)
    folders = [path for path in (tmp_path / "dealt").rglob("map/*") if path.is_dir()]
    assert folders
    for folder in folders:
        (folder / "stop").touch()
    time.sleep(3 * LOOK)
    should_stop()


@pytest.mark.parametrize(
    ("executor", "message"),
    [
        ("wrong", "in `Wrong.run`: yield the text that `work(block)` returned, not NoneType"),
        ("failing", "in `Failing.prepare`: KeyError: 'nowhere'"),
    ],
)
def test_mistakes_of_an_author_are_the_plugins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], executor: str, message: str
) -> None:
    write_recipe(tmp_path, 5, {"answers": sample()})
    run(tmp_path, "run", executor, expected=3)
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_continues_and_pays_for_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """In two processes, which are gone soon after the run. A request that was killed on its way may be asked again."""
    monkeypatch.setenv("JUDGE_KEY", "secret-of-the-judge")
    with serving(lambda request: Reply(body=verdict(request), pause=0.2)) as server:
        path = write_recipe(tmp_path, 60, {"pairs": judged(server.url, executor={"pool": {"block_rows": 16}})})
        command = [sys.executable, "-m", "alignkit", "run", str(path), "--plugin", str(EXECUTORS)]
        said = tmp_path / "said"
        with said.open("w") as file:
            started = subprocess.Popen([*command, "--out", str(tmp_path / "dealt")], stderr=file)
        end = time.monotonic() + PATIENCE
        while len(server.requests) < 24 and time.monotonic() < end:
            time.sleep(0.05)
        workers = psutil.Process(started.pid).children(recursive=True)
        started.send_signal(number)
        code = started.wait(PATIENCE)
        for worker in workers if number == signal.SIGKILL else ():  # which nobody has told
            with suppress(psutil.Error):
                worker.kill()
        if number == signal.SIGTERM:
            assert code == 75 and "stopped: SIGTERM" in said.read_text()
            assert not psutil.wait_procs(workers, PATIENCE)[1]
        before = Counter(str(request["messages"]) for request in server.requests)
        assert subprocess.run([*command, "--out", str(tmp_path / "dealt")], check=False).returncode == 0
        after = Counter(str(request["messages"]) for request in server.requests)
        again = sum(count > 1 for count in after.values())
        assert len(after) == 120 and len(before) < 120
        assert again <= (8 if number == signal.SIGKILL else 0)  # two workers with four requests each
        alone = run(tmp_path, "alone", stage="pairs")
    assert results(alone, "pairs") == results(tmp_path / "dealt", "pairs")


def test_a_worker_with_other_versions_computes_nothing(tmp_path: Path) -> None:
    ours = json.dumps({"kernels": None, **versions(), "torch": "1.0"})
    work = StageWork(
        "run", "recipe", ((), ()), "answers", str(tmp_path), "responses", 16, None, 1, ours, "elsewhere", Run
    )
    error = json.loads(work('{"start": 3}'))["error"]
    assert error["kind"] == "RunFailed" and f"torch {versions()['torch']} instead of 1.0" in error["text"]
