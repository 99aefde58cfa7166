"""Several processes with one engine: process 0 asks it for all of them, and they learn what one
process learns.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import together
from several import assert_alike, metrics_of, online, reward, write_recipe

import alignkit_plugins.models.tiny
from alignkit import cli
from alignkit.io.text import cache_folder
from tests.processes.vllm_server import FakeVllm

pytestmark = pytest.mark.usefixtures("one_thread")

RLAIF = {
    "rlaif": {
        "judge": {"local_judge": {"role": "base", "min_mass": 0.0}},
    }
}
BOTH = {
    "weighted_sum": {
        "rewards": {"win": RLAIF, "letters": reward("letters")},
        "weights": {"win": 1, "letters": 1},
    }
}
STAGES = {
    "grpo": online(
        "grpo", monitors=[{"gold": {"reward": reward("safe")}}], prompts_per_iteration=3
    ),
    "judged": online("rloo", reward=BOTH, iterations=1),
    "calls": online("rloo", environment="calculator", prompts={"path": "sums.jsonl"}, iterations=1),
    "ahead": online(
        "grpo",
        environment="calculator",
        prompts={"path": "sums.jsonl"},
        iterations=3,
        checkpoint_every=2,
    ),
    "step": {
        "step": "sample",
        "policy": "grpo",
        "prompts": {"path": "prompts.jsonl"},
        "sampling": {"max_new_tokens": 4},
    },
}
STAGES["ahead"]["rollout"] = {**STAGES["ahead"]["rollout"], "ahead": 1}


@pytest.fixture
def server() -> Iterator[FakeVllm]:
    found = FakeVllm(alignkit_plugins.models.tiny.source(cache_folder()))
    yield found
    found.close()


def recipe_of(server: FakeVllm, stages: dict[str, Any], **keys: Any) -> Path:
    model = {
        "base": "tiny",
        "dtype": "float32",
        "lora": {"r": 4, "lora_alpha": 8},
        "chat_template": "hermes",
    }
    return write_recipe(stages, **{"model": model, "engine": {"vllm": {"url": server.url}}, **keys})


def took(server: FakeVllm) -> tuple[list[Any], list[Any]]:
    """What was sampled and published since the last call, without the names of adapters, which are
    the run's.
    """
    sampled = sorted(json.dumps({**body, "model": ""}) for body in server.paths("/v1/completions"))
    loaded = [
        re.sub("^alignkit-[^-]*-", "", b["lora_name"])
        for b in server.paths("/v1/load_lora_adapter")
    ]
    server.asked.clear()
    return sampled, loaded


@pytest.mark.parametrize("shard", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_several_processes_learn_what_one_does(work: Path, server: FakeVllm, shard: bool) -> None:
    """An environment and a step are sampled by the engine, too."""
    recipe = recipe_of(server, STAGES)
    (work / "sums.jsonl").write_text('{"prompt": "2 + 3?", "answer": 5}\n')
    assert cli.main(["run", str(recipe), "--out", "one"]) == 0
    samples, adapters = took(server)
    ended = together(work, ["run", recipe, "--out", "several"], 2, sharded=shard)
    assert [process.code for process in ended] == [0, 0], ended
    assert_alike(Path("several"), Path("one"))
    again = took(server)
    assert again[0] == samples, "every sample was asked for once"
    assert len(again[1]) == len(adapters) == len({*again[1]}), (
        "and every version was published once"
    )
    assert all(
        row["sampler_gap"] < 1e-4
        for row in metrics_of(Path("several/grpo"))
        if "sampler_gap" in row
    )


def test_a_server_that_dies_ends_all_processes_and_the_run_continues(
    work: Path, server: FakeVllm
) -> None:
    recipe = recipe_of(server, {"align": online("rloo", checkpoint_every=1)})
    dies = {"after": 15 + 1 + 5}  # in the second iteration

    def fault(path: str, body: Any) -> tuple[int, str] | None:
        return (0, "") if len(server.paths("/v1/completions")) > dies["after"] else None

    server.fault = fault
    ended = together(work, ["run", recipe, "--out", "out"], 2)
    assert ended[0].code == 1 and ended[1].code in (1, -15), ended
    assert f"{server.url} cannot be used: RemoteProtocolError" in ended[0].err
    assert ended[1].err == "" and "Traceback" not in ended[0].err
    server.fault = lambda path, body: None
    assert [process.code for process in together(work, ["run", recipe, "--out", "out"], 2)] == [
        0,
        0,
    ]
    assert cli.main(["run", str(recipe), "--out", "one"]) == 0
    assert_alike(Path("out"), Path("one"))


def test_a_process_that_dies_while_the_engine_samples_ends_the_run(
    work: Path, server: FakeVllm
) -> None:
    recipe = recipe_of(server, {"align": online("rloo")})
    pids = work / "pids.py"
    pids.write_text(
        "import os\nfrom alignkit import hookimpl\n"
        "open(f'pid-{os.environ[\"RANK\"]}', 'w').write(str(os.getpid()))\n"
        "@hookimpl\ndef run_started(run): ...\n"
    )

    def fault(path: str, body: Any) -> None:
        if len(server.paths("/v1/completions")) == 25:
            os.kill(int((work / "pid-1").read_text()), signal.SIGKILL)

    server.fault = fault
    leader, other = together(work, ["run", recipe, "--plugin", pids, "--out", "out"], 2)
    assert other.code == -9 and leader.code == 1 and leader.seconds < 60
    assert "error: another process of the run has ended" in leader.err
