"""The page of a run that works: it reloads itself, shows what is written, and stops and continues the run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from made import BEGAN, HOSTILE, lines, make_run, write_stage
from starlette.testclient import TestClient

from alignkit_apps.report import live
from alignkit_apps.web.guard import Sessions

REFRESH = '<meta http-equiv="refresh"'


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def opened(run: Path) -> tuple[TestClient, str]:
    """A browser that has opened the printed address, and the token of its buttons."""
    sessions = Sessions(["ann"])
    client = TestClient(live.make_app(live.LiveRun(run), sessions), base_url="http://127.0.0.1")
    assert client.get("/").status_code == 401
    assert client.get("/", params={"token": sessions.links["ann"]}).status_code == 200
    return client, next(iter(sessions._known.values())).csrf


@contextmanager
def working(run: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the run's lock until it is asked to stop."""
    code = (
        "import sys, signal; from filelock import FileLock\n"
        "with FileLock(sys.argv[1]): print('works', flush=True); signal.pause()"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(run / ".lock")], stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"works\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_page_of_a_run_that_has_ended_stays_and_offers_to_continue(run: Path) -> None:
    client, csrf = opened(run)
    response = client.get("/")
    assert REFRESH not in response.text and "The run does not work now." in response.text
    assert 'action="/continue"' in response.text and csrf in response.text and "align gained over sft" in response.text
    assert response.headers.get_list("content-security-policy") == [live.POLICY] and "<script" not in response.text


def test_a_run_that_works_shows_progress_samples_and_who_it_waits_for(run: Path) -> None:
    (run / "align" / "rollouts").mkdir()
    group = {"prompt": [{"role": "user", "content": "why?"}], "responses": [answer(HOSTILE)]}
    lines(run / "align" / "rollouts" / "0001.jsonl", [{}, group])
    write_stage(run / "labels", "feedback", complete=False, waits_for={"labels": 12})
    lines(run / "starts.jsonl", [{"event": "start", "time": BEGAN}])
    with (run / "run.log").open("a") as log:
        log.write("2026-09-21T14:14:00Z align iteration 4/40 loss 0.03 (2m05s, 18m45s left)\n")
    with working(run):
        text = opened(run)[0].get("/").text
    assert (
        REFRESH in text
        and 'action="/stop"' in text
        and "align: iteration 4 of 40, 18m45s left</strong>" in text
        and "loss 0.03</span>" in text
    )
    assert "waiting for 12 labels of people" in text and "why?" in text and "reward: 0.5" in text
    assert "&lt;script&gt;alert(1)" in text and "<script" not in text and "running" in text


def test_the_progress_of_a_step_has_several_words(run: Path) -> None:
    lines(run / "starts.jsonl", [{"event": "start", "time": BEGAN}])
    with (run / "run.log").open("a") as log:
        log.write("2026-09-21T14:14:00Z align iteration 4/40 loss 0.03 (2m05s, 18m45s left)\n")
        log.write("2026-09-21T14:15:00Z report: scoring with my reward 3/10 (1m00s, 2m20s left)\n")
    with working(run):
        text = opened(run)[0].get("/").text
    assert "report: scoring with my reward 3 of 10, 2m20s left</strong>" in text


def answer(text: str) -> dict[str, Any]:
    return {"source": "align", "text": text, "tokens": [1, 2], "scores": {"reward": 0.5}}


def test_stop_asks_the_run_to_stop_if_the_page_asks(run: Path) -> None:
    with working(run) as process:
        client, csrf = opened(run)
        assert client.post("/stop", data={"csrf": "x"}).status_code == 403 and process.poll() is None
        other = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
        assert client.post("/stop", data={"csrf": csrf}, headers=other).status_code == 403 and process.poll() is None
        assert client.post("/stop", data={"csrf": csrf}, follow_redirects=False).status_code == 303
        assert process.wait(20) == -15


def test_continue_runs_the_recipe_into_the_same_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[list[str]] = []

    class Started:
        def __init__(self, command: list[str], **options: Any):
            begun.append(command)
            assert options["start_new_session"]

        def poll(self) -> int:
            return 0

    client, csrf = opened(run)
    monkeypatch.setattr(live.subprocess, "Popen", Started)
    assert client.post("/continue", data={"csrf": csrf}).status_code == 200
    assert [command[1:] for command in begun] == [
        ["-m", "alignkit", "run", str(run / "recipe.resolved.yaml"), "--out", str(run)]
    ]
    monkeypatch.undo()
    with working(run):
        client.post("/continue", data={"csrf": csrf})  # it works already
    assert len(begun) == 1


def test_odd_samples_are_left_out(run: Path) -> None:
    (run / "align" / "rollouts").mkdir()
    file = run / "align" / "rollouts" / "0001.jsonl"
    file.write_text("{\n[]\n" + json.dumps({"prompt": [], "responses": [answer("x")]}))
    assert list(live._latest(run)) == []
