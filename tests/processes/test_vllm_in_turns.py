"""The engine `vllm` where a server and training share one GPU in turns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import alignkit_plugins.models.tiny
from alignkit.io.text import cache_folder
from alignkit.testing import check_engine
from alignkit_plugins.vllm.engine import Vllm
from tests.processes.test_vllm_engine import recipe, run
from tests.processes.vllm_server import FakeVllm

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def server() -> Iterator[FakeVllm]:
    found = FakeVllm(alignkit_plugins.models.tiny.source(cache_folder()))
    yield found
    found.close()


def test_it_sleeps_whenever_it_is_not_asked(server: FakeVllm) -> None:
    """The kit computes between all calls, and the server answers nothing while it sleeps."""
    check_engine(Vllm, {"url": server.url, "sleep": True})
    paths = [path for path, _ in server.asked]
    slept, woke = paths.count("/sleep?level=1"), paths.count("/wake_up")
    assert slept == woke - 1 > 5, "it is woken once more to begin with"
    assert not server.asleep, "a server of somebody is left awake"


def test_it_sleeps_while_a_stage_learns(
    server: FakeVllm,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from alignkit.training.learner import Learner

    asleep, step = [], Learner.step
    monkeypatch.setattr(
        Learner, "step", lambda self, *given: (asleep.append(server.asleep), step(self, *given))[1]
    )
    server.asleep = True  # since a run that was killed
    code, err = run(recipe(tmp_path, {"url": server.url, "sleep": True}), capsys)
    assert code == 0 and all(asleep) and len(asleep) >= 3, err


def test_a_server_that_cannot_sleep_is_refused(
    server: FakeVllm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.development = False
    code, err = run(recipe(tmp_path, {"url": server.url, "sleep": True}), capsys)
    words = " ".join(err.split())
    assert code == 1 and "start it with VLLM_SERVER_DEV_MODE=1 in its environment" in words
    assert "--enable-sleep-mode" in words and not server.paths("/v1/completions")
