"""The engine `vllm` with servers that answer as vLLM does, and with a real one where there is
one.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from patience import PATIENCE

import alignkit_plugins.models.smollm2
import alignkit_plugins.models.tiny
from alignkit.cli import main
from alignkit.io.text import cache_folder
from alignkit.models.shared_model import SharedModel
from alignkit.recipe.load import load_recipe
from alignkit.registry import Component, Registration
from alignkit.settings import LoraSpec, ModelSpec
from alignkit.testing import check_engine
from alignkit.testing.engine_kit import POLICY, EngineCheck
from alignkit.testing.surroundings import ConformanceError
from alignkit.testing.tiny import add_noise
from alignkit.training.learner import Learner
from alignkit_plugins.processes.engine import StageEngine
from alignkit_plugins.vllm.engine import Vllm
from tests.processes.vllm_server import FakeVllm
from tests.rows import read_rows, write_recipe

STAGE: dict[str, Any] = yaml.safe_load("""
algorithm: rloo
prompts: prompts.jsonl
reward: {length: {unit: characters}}
rollout: {samples_per_prompt: 2, max_new_tokens: 5}
iterations: 3
prompts_per_iteration: 3
learning_rate: 0.01
""")
LOAD, UNLOAD, ASK = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/completions"

pytestmark = pytest.mark.usefixtures("one_thread")
Serve = Callable[..., FakeVllm]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[FakeVllm] = []

    def start(**options: Any) -> FakeVllm:
        servers.append(FakeVllm(alignkit_plugins.models.tiny.source(cache_folder()), **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def recipe(folder: Path, engine: Any, **keys: Any) -> Path:
    return write_recipe(folder, {"align": STAGE | keys}, engine={"vllm": engine})


@dataclass
class Ran:
    """A run of the recipe in `folder`: its exit code, what it said on one line, and its metrics."""

    code: int
    err: str
    metrics: list[dict[str, Any]]

    @property
    def exact(self) -> bool:
        """Whether it ended, and every sampler computed as training did."""
        gaps = [row["sampler_gap"] for row in self.metrics]
        return self.code == 0 and bool(gaps) and max(gaps) < 1e-4


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def ran(engine: Any, **keys: Any) -> Ran:
        path = recipe(tmp_path, engine, **keys)
        code, file = main(["run", str(path), "--out", str(tmp_path / "out")]), tmp_path / METRICS
        told = read_rows(file) if file.exists() else []
        err = " ".join(capsys.readouterr().err.split())
        assert "Traceback" not in err, err
        return Ran(code, err, [row for row in told if "sampler_gap" in row])

    return ran


METRICS = "out/align/metrics.jsonl"


def test_it_means_what_other_engines_mean(serve: Serve) -> None:
    server = serve()
    check_engine(Vllm, {"url": server.url})
    asked = server.paths(ASK)
    assert all(isinstance(body["prompt"], list) and body["return_token_ids"] for body in asked)
    assert not server.adapters  # nothing is left behind
    with pytest.raises(ConformanceError, match="start it with --logprobs-mode processed_logprobs"):
        check_engine(Vllm, {"url": serve(processed=False).url})


def test_every_iteration_samples_from_its_own_adapter(
    serve: Serve, run: Callable[..., Ran]
) -> None:
    servers = [serve(), serve()]
    assert run({"url": [server.url for server in servers]}).exact
    for server in servers:
        loaded, unloaded = ([b["lora_name"] for b in server.paths(path)] for path in (LOAD, UNLOAD))
        assert len(set(loaded)) == len(loaded) == 3 and not server.adapters
        assert loaded == unloaded[1:]  # after the check
        sampled = dict.fromkeys(body["model"] for body in server.paths(ASK))
        assert [name for name in sampled if name != "served"] == loaded
    counts = [len(server.paths(ASK)) - 1 for server in servers]  # without the probe
    assert sum(counts) == 18 and min(counts) >= 6  # shared between them


def test_a_server_samples_ahead(serve: Serve, run: Callable[..., Ran]) -> None:
    """The first adapter writes two iterations, and the last one none."""
    server = serve()
    ran = run({"url": server.url}, rollout={**STAGE["rollout"], "ahead": 1})
    loaded = [body["lora_name"] for body in server.paths(LOAD)]
    rows = [body["model"] for body in server.paths(ASK)]
    assert ran.code == 0 and [rows.count(name) for name in loaded] == [12, 6], ran.err
    assert not server.adapters and [row["staleness"] for row in ran.metrics] == [0, 1, 1]


def test_a_server_that_fails_ends_the_run_which_continues_without_it(
    serve: Serve, run: Callable[..., Ran]
) -> None:
    """It dies in the second iteration. The first one is not sampled again."""
    good, bad = serve(), serve()

    def fault(path: str, body: Any) -> tuple[int, str] | None:
        second = len({asked["lora_name"] for asked in bad.paths(LOAD)}) == 2
        return (0, "") if path == ASK and "prompt_logprobs" not in body and second else None

    bad.fault = fault
    ran = run({"url": [bad.url, good.url]}, checkpoint_every=1)
    assert ran.code == 1 and f"{bad.url} cannot be used: RemoteProtocolError" in ran.err, ran.err
    assert "the same command continues the run" in ran.err and not good.adapters
    first = good.paths(LOAD)[0]["lora_name"]
    ran = run({"url": good.url}, checkpoint_every=1)  # another address is no other recipe
    assert ran.exact and "starting over" not in ran.err
    names = [body["lora_name"] for body in good.paths(LOAD)]
    assert names.count(first) == 1 and len(set(names)) == 3


def one(logprob: float, token: int = 5) -> dict[str, Any]:
    return {"token_ids": [token], "logprobs": {"token_logprobs": [logprob]}}


OTHER_ANSWERS: list[tuple[dict[str, Any], str]] = [
    ({"prompt_token_ids": [1, 2]}, "it read another prompt than it was sent"),
    ({"logprobs": None}, "its answer cannot be read: TypeError"),
    (one(-1.0, 10**6), "sample 0 token 1000000 is not in the vocabulary"),
    ({"logprobs": {"token_logprobs": []}}, "tokens have 0 log-probabilities"),
    (one(math.nan), "a log-probability is nan"),
    (one(0.5), "a log-probability is 0.5"),
]


@pytest.mark.parametrize(("changed", "said"), OTHER_ANSWERS)
def test_a_server_that_answers_wrongly_is_refused(
    serve: Serve, run: Callable[..., Ran], changed: dict[str, Any], said: str
) -> None:
    bad = serve()
    bad.change = lambda choice: choice if "prompt_logprobs" in choice else choice | changed
    ran = run({"url": bad.url}, iterations=1)
    assert ran.code in (1, 3) and said in ran.err, ran.err
    assert (f"{bad.url} cannot be used: " in ran.err) == (ran.code == 1)
    assert bad.paths(LOAD) and not bad.adapters, "somebody's server keeps an adapter"


def test_a_server_that_hangs_is_given_up(serve: Serve, run: Callable[..., Ran]) -> None:
    hanging, ended = serve(), threading.Event()

    def fault(path: str, body: Any) -> None:
        if path == ASK and "prompt_logprobs" not in body:
            ended.wait()

    hanging.fault = fault
    ran = run({"url": hanging.url, "timeout": 10}, iterations=1)
    ended.set()
    assert ran.code == 3 and "it made no progress for 10 seconds and was given up" in ran.err


def faulty(answer: Callable[[str], tuple[int, str] | None]) -> Callable[[FakeVllm], None]:
    def change(server: FakeVllm) -> None:
        server.fault = lambda path, body: answer(path)

    return change


def other_weights(server: FakeVllm) -> None:
    with torch.no_grad():
        for parameter in server.model.model.parameters():
            parameter.mul_(1.3)


LORA = "start it with --enable-lora, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
UNFIT: list[tuple[dict[str, Any], Any, dict[str, Any], tuple[str, ...]]] = [
    # the server's options, what is changed in it, the engine's options, what is said
    ({"key": "secret"}, None, {}, ("wants a key: name its environment variable in api_key_env",)),
    ({"key": "secret"}, None, {"api_key_env": "KEY_OF_VLLM"}, ("takes another key than the",)),
    ({"lora": False}, None, {}, (LORA,)),
    ({"room": 12}, None, {}, ("start it with --max-model-len",)),
    ({}, other_weights, {}, ("has other weights than", "nats per token, more than 0.1")),
    (
        {},
        faulty(lambda path: (200, '{"tokens": [5]}') if path == "/tokenize" else None),
        {},
        ("it serves served; start it with",),
    ),
    ({}, faulty(lambda path: (200, '{"data": []}')), {}, ("is no server of vLLM: as its list",)),
    (
        {},
        faulty(lambda path: (404, "No adapter found for /x") if path == LOAD else None),
        {},
        ("let it read", "needs the file system of this machine"),
    ),
    (
        {},
        faulty(lambda path: (500, "LoRA rank 4 is greater") if path == LOAD else None),
        {},
        ("LoRA rank 4 is greater; start it with a larger --max-lora-rank",),
    ),
]


@pytest.mark.parametrize(("options", "change", "engine", "said"), UNFIT)
def test_a_server_that_does_not_fit_is_refused(
    options: Any,
    change: Any,
    engine: Any,
    said: tuple[str, ...],
    serve: Serve,
    run: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KEY_OF_VLLM", "other")
    server = serve(**options)
    if change:
        change(server)
    ran = run({"url": server.url, **engine})
    assert ran.code != 0 and all(words in ran.err for words in said), ran.err


def test_a_place_where_no_server_is(
    serve: Serve, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve().url
    monkeypatch.setenv("PATH", "")
    for engine, words in (
        ({"url": "http://127.0.0.1:9"}, "cannot be used: ConnectError(.*)start one there, or cha"),
        ({"url": url.replace("http:", "https:")}, "does it begin with http://?"),
        ({"url": url + ASK}, "name the address only"),
        ({"command": "vllm 'y"}, "No closing quotation"),
        ({}, "install vLLM into its own environment"),
    ):
        ran = run(engine)
        assert ran.code and re.search(words, ran.err), ran.err


def test_quantized_weights_are_served_by_a_command_that_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, {"command": "python3"})  # which would serve the base's whole weights
    path.write_text(path.read_text().replace("dtype: float32", "quantization: nf4"))
    assert main(["check", str(path)]) == 2
    assert "and the quantized ones are trained" in capsys.readouterr().err
    command = "engine.vllm.command=python3 --quantization bitsandbytes"
    assert main(["check", str(path), command]) == 0


def test_a_correction_needs_log_probabilities(
    serve: Serve, run: Callable[..., Ran], tmp_path: Path
) -> None:
    """Whether there are any shows in the recipe, or how the server was started."""
    filters = STAGE["rollout"] | {"top_k": 5, "min_new_tokens": 2}
    load_recipe(recipe(tmp_path, {}, rollout=filters))
    ran = run({"url": serve().url, "importance": {"cap": 2.0}}, rollout=filters)
    assert ran.code == 1 and "the engine tells no log-probabilities of its samples" in ran.err


# A server that shares one GPU with training


def test_it_sleeps_whenever_it_is_not_asked(serve: Serve) -> None:
    """The kit computes between all calls, and the server answers nothing while it sleeps."""
    server = serve()
    check_engine(Vllm, {"url": server.url, "sleep": True})
    slept, woke = (len(server.paths(path)) for path in ("/sleep?level=1", "/wake_up"))
    assert slept == woke - 1 > 5, "it is woken once more to begin with"
    assert not server.asleep, "a server of somebody is left awake"


def test_it_sleeps_while_a_stage_learns(
    serve: Serve, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, asleep, step = serve(), list[bool](), Learner.step

    def stepped(self: Learner, *given: Any) -> Any:
        asleep.append(server.asleep)
        return step(self, *given)

    monkeypatch.setattr(Learner, "step", stepped)
    server.asleep = True  # since a run that was killed
    ran = run({"url": server.url, "sleep": True})
    assert ran.code == 0 and all(asleep) and len(asleep) >= 3, ran.err
    server.development = False
    server.asked.clear()
    ran = run({"url": server.url, "sleep": True}, learning_rate=0.02)
    assert ran.code == 1 and "--enable-sleep-mode" in ran.err and not server.paths(ASK)
    assert "start it with VLLM_SERVER_DEV_MODE=1 in its environment" in ran.err


# A server of the run's own


LOG = """(EngineCore) ERROR [core.py:1] ValueError: the KV cache is too small
RuntimeError: Engine core initialization failed. See root cause above.
bye"""
VALIDATION = """p.ValidationError: 1 validation error for M
  max_model_len
  bye"""


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (LOG, "ValueError: the KV cache is too small"),
        (VALIDATION, "ValidationError: 1 validation error for M max_model_len"),
    ],
)
def test_a_server_that_cannot_start_says_why(
    log: str, said: str, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ncat >&2 << END\n{log}\nEND\nexit 7\n")
    program.chmod(0o755)
    ran = run({"command": f"{program} serve"})
    assert ran.code == 1 and "did not start; it ended with exit code 7" in ran.err, ran.err
    assert f"says: {said}" in ran.err and "starting vLLM" in ran.err


COMMAND = os.environ.get("ALIGNKIT_TEST_VLLM") or (
    f"{shutil.which('vllm')} serve" if shutil.which("vllm") else ""
)


@pytest.mark.slow
@pytest.mark.skipif(not COMMAND, reason="needs vLLM: `vllm`, or its command in ALIGNKIT_TEST_VLLM")
def test_a_real_server(tmp_path: Path) -> None:
    """The rules of the kit, and a run that starts a server; of SmolLM2, because `tiny` is too small
    for vLLM.
    """
    command = f"{COMMAND} --max-model-len 512 --max-num-seqs 8 --enforce-eager"
    options: dict[str, Any] = {"command": command, "timeout": PATIENCE}
    name = "smollm2-135m-instruct"
    spec = ModelSpec(base=name, dtype="float32", device="cpu", lora=LoraSpec(r=8, lora_alpha=16))
    model = SharedModel(spec, str(alignkit_plugins.models.smollm2.source(cache_folder())))
    model.end_ids = (*model.end_ids, *range(200, 2000, 3))  # so that some responses end
    component = Component("engine", "vllm", Registration("vllm", Vllm), Vllm.Options(**options))
    asked = StageEngine(component, tmp_path / "engine", stage="", seed=0, say=lambda line: None)
    model.add_role(POLICY)
    add_noise(model, POLICY, 0.02, 1)
    try:
        (check := EngineCheck(asked, model, 1e-3)).check()
        assert not check.problems
    finally:
        asked.close()
    path = recipe(tmp_path, options)
    path.write_text(path.read_text().replace("tiny", name))
    assert main(["run", str(path), "--out", str(tmp_path / "out")]) == 0
    rows = [row for row in read_rows(tmp_path / METRICS) if "sampler_gap" in row]
    assert rows and all(row["sampler_gap"] < 1e-3 for row in rows)
