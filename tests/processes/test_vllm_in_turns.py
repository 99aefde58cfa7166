"""The engine `vllm` where a server has one thing at a time: the GPU, or the weights of one
policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import alignkit_plugins.models.tiny
from alignkit.io.text import cache_folder
from alignkit.testing import check_engine
from alignkit_plugins.vllm.engine import Vllm
from tests.processes.test_vllm_engine import metrics, recipe, run
from tests.processes.vllm_server import FakeVllm

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def server() -> Iterator[FakeVllm]:
    found = FakeVllm(alignkit_plugins.models.tiny.source(cache_folder()))
    yield found
    found.close()


def whole(folder: Path, server: FakeVllm, **keys: Any) -> Path:
    path = recipe(folder, {"url": server.url}, **keys)
    path.write_text(path.read_text().replace("lora:\n    lora_alpha: 8\n    r: 4", "lora: none"))
    return path


# One GPU in turns


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


# Whole models


def test_whole_models_are_read_in_place(
    server: FakeVllm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each iteration from its own weights, and a step from two policies in turns."""
    path = whole(tmp_path, server, learning_rate=0.001)
    path.write_text(
        path.read_text().replace(
            "stages:", "stages:\n  sampled: {step: sample, policy: base, prompts: rows.jsonl}"
        )
    )
    code, err = run(path, capsys)
    assert code == 0, err
    read = [body["kwargs"]["weights_path"] for body in server.paths("/collective_rpc")]
    # The base, and one for each iteration
    assert read.count(server.base) >= 2 and len({*read}) == 4
    assert read[-1] == server.base, "a server of somebody is left as it was"
    rows = metrics(tmp_path)
    assert (
        len(rows) == 3 and all(row["sampler_gap"] < 1e-4 for row in rows) and rows[-1]["kl"] > 1e-3
    )


def test_a_server_that_keeps_old_weights_shows(
    server: FakeVllm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The test above would fail without them."""
    server._call = lambda body: (200, {"results": [None]})  # type: ignore[method-assign]
    run(whole(tmp_path, server, learning_rate=0.001), capsys)
    assert not any(row["sampler_gap"] < 1e-4 for row in metrics(tmp_path)[1:])


def test_prefixes_of_other_weights_are_forgotten(
    server: FakeVllm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server._reset = lambda body: (200, {"success": False})  # type: ignore[method-assign]
    code, err = run(whole(tmp_path, server), capsys)
    assert code == 1 and "it did not forget what it had computed with other weights" in " ".join(
        err.split()
    )


def test_a_server_without_development_mode_reads_none(
    server: FakeVllm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.development = False
    code, err = run(whole(tmp_path, server), capsys)
    assert code == 1 and "start it with VLLM_SERVER_DEV_MODE=1" in " ".join(err.split())


def test_whole_models_are_refused_on_a_cpu(
    server: FakeVllm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """vLLM 0.32 keeps the old head there if it is tied to the embeddings."""
    server.device = "cpu"
    code, err = run(whole(tmp_path, server), capsys)
    assert code == 1 and "write 'engine: local', or train an adapter" in " ".join(err.split())
