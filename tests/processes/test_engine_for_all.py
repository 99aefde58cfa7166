"""Several processes with one engine: process 0 asks it for all of them, and they learn what one
process learns.
"""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from forked import run_together, together
from several import RLOO, assert_same_as_one, write_recipe

from tests.processes.vllm_server import FakeVllm, Serve
from tests.rows import read_rows

pytestmark = pytest.mark.usefixtures("one_thread")

STAGES = """
judged:
  algorithm: rloo
  reward:
    weighted_sum:
      rewards:
        win: {rlaif: {judge: {local_judge: {role: base, min_mass: 0.0}}}}
        letters: {python: {path: scores.py, function: letters}}
      weights: {win: 1, letters: 1}
  iterations: 1
  prompts_per_iteration: 3
ahead:
  algorithm: grpo
  environment: calculator
  prompts: sums.jsonl
  rollout: {samples_per_prompt: 3, max_new_tokens: 6, async_level: 1}
  monitors: [{gold: {reward: {python: {path: scores.py, function: safe}}}}]
  checkpoint_every: 2
step: {step: sample, policy: ahead, prompts: prompts.jsonl, sampling: {max_new_tokens: 4}}
"""


def took(server: FakeVllm) -> tuple[list[Any], list[Any]]:
    """What was sampled and published since the last call, without the names of adapters, which are
    the run's.
    """
    sampled = sorted(json.dumps({**body, "model": ""}) for body in server.paths("/v1/completions"))
    loaded = [re.sub("^alignkit-[^-]*-", "", name) for name in server.loaded]
    server.asked.clear()
    return sampled, loaded


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_several_processes_learn_what_one_does(work: Path, serve: Serve, shard: bool) -> None:
    """An environment, a judge and a step are sampled by the engine, too."""
    server, recipe = serve(), write_recipe(STAGES, "chat_template: hermes")
    (work / "sums.jsonl").write_text('{"prompt": "2 + 3?", "answer": 5}\n')
    url = f"engine.vllm.url={server.url}"
    run_together(recipe, "several", url, sharded=shard)
    samples, adapters = took(server)
    assert_same_as_one(recipe, "several", url)
    assert took(server)[0] == samples, "every sample was asked for once"
    assert len(adapters) == len({*adapters}), "and every version was published once"
    metrics = read_rows(Path("several/judged/metrics.jsonl"))
    assert all(row["engine_mismatch"] < 1e-4 for row in metrics)


def test_a_server_that_dies_ends_all_processes_and_the_run_continues(
    work: Path, serve: Serve
) -> None:
    server, recipe = serve(), write_recipe(RLOO)
    url = f"engine.vllm.url={server.url}"
    arguments = ["run", recipe, url, "--out", "out"]

    def fault(path: str, body: Any) -> tuple[int, str] | None:
        # The probe, 15 samples of the first iteration, and some of the second
        return (0, "") if len(server.paths("/v1/completions")) > 1 + 15 + 5 else None

    server.fault = fault
    leader, other = together(arguments)
    assert leader.code == 1 and other.code in (1, -15)
    assert f"{server.url} cannot be used: RemoteProtocolError" in leader.err
    assert other.err == "" and "Traceback" not in leader.err
    server.fault = lambda path, body: None
    run_together(recipe, "out", url)
    assert_same_as_one(recipe, "out", url)


def test_a_process_that_dies_while_the_engine_samples_ends_the_run(
    work: Path, serve: Serve
) -> None:
    server, recipe = serve(), write_recipe(RLOO)
    (work / "pids.py").write_text(
        "import os\nfrom alignkit import hookimpl\n"
        "open(f'pid-{os.environ[\"RANK\"]}', 'w').write(str(os.getpid()))\n"
        "@hookimpl\ndef run_started(run): ...\n"
    )

    def fault(path: str, body: Any) -> None:
        if len(server.paths("/v1/completions")) == 25:
            os.kill(int((work / "pid-1").read_text()), signal.SIGKILL)

    server.fault = fault
    words = [f"engine.vllm.url={server.url}", "--plugin", "pids.py", "--out", "out"]
    leader, other = together(["run", recipe, *words])
    assert other.code == -9 and leader.code == 1
    assert "error: another process of the run has ended" in leader.err
