"""The engine `vllm` with servers that answer as vLLM does, and with a real one where there is
one.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterator
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
from alignkit_plugins.processes.engine import StageEngine
from alignkit_plugins.vllm.engine import Vllm
from tests.processes.vllm_server import FakeVllm

STAGE: dict[str, Any] = {
    "algorithm": "rloo",
    "prompts": "rows.jsonl",
    "reward": {"length": {"unit": "characters"}},
    "rollout": {"samples_per_prompt": 2, "max_new_tokens": 5},
    "iterations": 3,
    "prompts_per_iteration": 3,
    "learning_rate": 0.01,
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeVllm]]:
    servers: list[FakeVllm] = []

    def start(**options: Any) -> FakeVllm:
        servers.append(FakeVllm(alignkit_plugins.models.tiny.source(cache_folder()), **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def recipe(folder: Path, engine: Any, **keys: Any) -> Path:
    rows = [{"prompt": f"is it {n}?"} for n in range(3)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plain = {
        "model": {"base": "tiny", "dtype": "float32", "lora": {"r": 4, "lora_alpha": 8}},
        "engine": {"vllm": engine},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**plain, "stages": {"align": STAGE | keys}}))
    return path


def run(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(["run", str(path), "--out", str(path.parent / "out")])
    return code, capsys.readouterr().err


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "out" / "align" / "metrics.jsonl").read_text().splitlines()
    return [row for line in lines if "sampler_gap" in (row := json.loads(line))]


def test_it_means_what_other_engines_mean(serve: Callable[..., FakeVllm]) -> None:
    server = serve()
    check_engine(Vllm, {"url": server.url})
    asked = server.paths("/v1/completions")
    assert all(isinstance(body["prompt"], list) and body["return_token_ids"] for body in asked)
    assert not server.adapters  # nothing is left behind
    with pytest.raises(ConformanceError, match="start it with --logprobs-mode processed_logprobs"):
        check_engine(Vllm, {"url": serve(processed=False).url})


def test_every_iteration_samples_from_its_own_adapter(
    serve: Callable[..., FakeVllm], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = [serve(), serve()]
    path = recipe(tmp_path, {"url": [server.url for server in servers]})
    code, err = run(path, capsys)
    assert code == 0, err
    for server in servers:
        loaded = [body["lora_name"] for body in server.paths("/v1/load_lora_adapter")]
        assert len(set(loaded)) == len(loaded) == 3 and not server.adapters
        # After the check
        assert loaded == [body["lora_name"] for body in server.paths("/v1/unload_lora_adapter")][1:]
        sampled = [body["model"] for body in server.paths("/v1/completions")]
        assert [name for name in dict.fromkeys(sampled) if name != "served"] == loaded
    counts = [len(server.paths("/v1/completions")) - 1 for server in servers]  # without the probe
    assert sum(counts) == 18 and min(counts) >= 6  # shared between them
    assert all(row["sampler_gap"] < 1e-4 for row in metrics(tmp_path))


def test_a_server_samples_ahead(
    serve: Callable[..., FakeVllm], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first adapter writes two iterations, and the last one none."""
    server = serve()
    code, err = run(
        recipe(tmp_path, {"url": server.url}, rollout={**STAGE["rollout"], "ahead": 1}), capsys
    )
    assert code == 0, err
    loaded = [body["lora_name"] for body in server.paths("/v1/load_lora_adapter")]
    rows = [body["model"] for body in server.paths("/v1/completions")]
    assert [rows.count(name) for name in loaded] == [12, 6] and not server.adapters
    assert [row["staleness"] for row in metrics(tmp_path)] == [0, 1, 1]


def test_a_server_that_fails_ends_the_run_which_continues_without_it(
    serve: Callable[..., FakeVllm], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It dies in the second iteration. The first one is not sampled again."""
    good, bad = serve(), serve()

    def fault(path: str, body: Any) -> tuple[int, str] | None:
        second = len({asked["lora_name"] for asked in bad.paths("/v1/load_lora_adapter")}) == 2
        return (
            (0, "")
            if path == "/v1/completions" and "prompt_logprobs" not in body and second
            else None
        )

    bad.fault = fault
    code, err = run(recipe(tmp_path, {"url": [bad.url, good.url]}, checkpoint_every=1), capsys)
    assert code == 1 and f"{bad.url} cannot be used: RemoteProtocolError" in err, err
    assert "the same command continues the run" in err and not good.adapters
    first = good.paths("/v1/load_lora_adapter")[0]["lora_name"]
    code, err = run(recipe(tmp_path, {"url": good.url}, checkpoint_every=1), capsys)
    assert code == 0, err
    names = [body["lora_name"] for body in good.paths("/v1/load_lora_adapter")]
    assert names.count(first) == 1 and len(set(names)) == 3
    assert all(row["sampler_gap"] < 1e-4 for row in metrics(tmp_path))


OTHER_ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "prompt": ({"prompt_token_ids": [1, 2]}, "it read another prompt than it was sent"),
    "none": ({"logprobs": None}, "its answer cannot be read: TypeError"),
    "token": (
        {"token_ids": [10**6], "logprobs": {"token_logprobs": [-1.0]}},
        "sample 0 token 1000000 is not in the vocabulary",
    ),
    "count": ({"logprobs": {"token_logprobs": []}}, "tokens have 0 log-probabilities"),
    "nan": (
        {"token_ids": [5], "logprobs": {"token_logprobs": [math.nan]}},
        "a log-probability is nan",
    ),
    "above 0": (
        {"token_ids": [5], "logprobs": {"token_logprobs": [0.5]}},
        "a log-probability is 0.5",
    ),
}


@pytest.mark.parametrize("name", OTHER_ANSWERS)
def test_a_server_that_answers_wrongly_is_refused(
    serve: Callable[..., FakeVllm], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    changed, said = OTHER_ANSWERS[name]
    bad = serve()
    bad.change = lambda choice: choice if "prompt_logprobs" in choice else choice | changed
    code, err = run(recipe(tmp_path, {"url": bad.url}, iterations=1), capsys)
    assert code in (1, 3) and said in err and "Traceback" not in err, err
    assert (f"{bad.url} cannot be used: " in err) == (code == 1)
    assert bad.paths("/v1/load_lora_adapter") and not bad.adapters, (
        "somebody's server keeps an adapter"
    )
    good = serve()
    code, err = run(recipe(tmp_path, {"url": good.url}, iterations=1), capsys)
    assert code == 0 and "starting over" not in err, err  # another address is no other recipe


def test_a_server_that_hangs_is_given_up(
    serve: Callable[..., FakeVllm], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hanging, ended = serve(), threading.Event()

    def fault(path: str, body: Any) -> None:
        if path == "/v1/completions" and "prompt_logprobs" not in body:
            ended.wait()

    hanging.fault = fault
    code, err = run(recipe(tmp_path, {"url": hanging.url, "timeout": 10}, iterations=1), capsys)
    ended.set()
    assert code == 3 and "it made no progress for 10 seconds and was given up" in err, err


def test_servers_that_do_not_fit_are_refused(
    serve: Callable[..., FakeVllm],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def said(server: FakeVllm | str, **more: Any) -> str:
        url = server if isinstance(server, str) else server.url
        code, err = run(recipe(tmp_path, {"url": url, **more}), capsys)
        assert code != 0 and "Traceback" not in err, err
        return " ".join(err.split())

    assert "wants a key: name its environment variable in api_key_env" in said(serve(key="secret"))
    monkeypatch.setenv("KEY_OF_VLLM", "other")
    assert "takes another key than the variable in api_key_env" in said(
        serve(key="secret"), api_key_env="KEY_OF_VLLM"
    )
    nobody = said("http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be used: ConnectError" in nobody
    assert "start one there, or change 'url'" in nobody
    assert "start it with --enable-lora, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True" in said(
        serve(lora=False)
    )
    assert "start it with --max-model-len" in said(serve(room=12))
    tokenizer = serve()
    tokenizer.fault = lambda path, body: (200, '{"tokens": [5]}') if path == "/tokenize" else None
    assert "it serves served; start it with" in said(tokenizer)
    weights = serve()
    with torch.no_grad():
        for parameter in weights.model.model.parameters():
            parameter.mul_(1.3)
    assert "has other weights than" in said(weights) and "nats per token, more than 0.1" in said(
        weights
    )
    other = serve()
    other.fault = lambda path, body: (200, '{"data": []}')
    assert "is no server of vLLM: as its list of models it sends" in said(other)
    with_tls = serve().url.replace("http:", "https:")
    assert "wrong version number (_ssl.c" in said(
        with_tls
    ) and "does it begin with http://?" in said(with_tls)
    assert "name the address only" in said(serve().url + "/v1/completions")
    disk, rank = serve(), serve()
    disk.fault = lambda path, body: (
        (404, "No adapter found for /x") if path == "/v1/load_lora_adapter" else None
    )
    rank.fault = lambda path, body: (
        (500, "LoRA rank 4 is greater") if path == "/v1/load_lora_adapter" else None
    )
    assert "let it read" in said(disk) and "needs the file system of this machine" in said(disk)
    assert "LoRA rank 4 is greater; start it with a larger --max-lora-rank" in said(rank)
    code, err = run(recipe(tmp_path, {"command": "vllm 'y"}), capsys)
    assert code == 2 and "No closing quotation" in err, err
    path = recipe(tmp_path, {"command": "python3"})  # which would serve the base's whole weights
    path.write_text(path.read_text().replace("dtype: float32", "quantization: nf4"))
    assert (
        main(["check", str(path)]) == 2
        and "and the quantized ones are trained" in capsys.readouterr().err
    )
    assert (
        main(["check", str(path), "engine.vllm.command=python3 --quantization bitsandbytes"]) == 0
    )
    monkeypatch.setenv("PATH", "")
    assert "install vLLM into its own environment" in " ".join(
        run(recipe(tmp_path, {}), capsys)[1].split()
    )


def test_a_correction_needs_log_probabilities(
    serve: Callable[..., FakeVllm], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether there are any shows in the recipe, or how the server was started."""
    filters = STAGE["rollout"] | {"top_k": 5, "min_new_tokens": 2}
    load_recipe(recipe(tmp_path, {}, rollout=filters))
    options = {"url": serve().url, "importance": {"cap": 2.0}}
    code, err = run(recipe(tmp_path, options, rollout=filters), capsys)
    assert code == 1
    assert "the engine tells no log-probabilities of its samples" in " ".join(err.split())


# A server of the run's own


def test_a_server_that_cannot_start_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "program"
    lines = "(EngineCore) ERROR [core.py:1] ValueError: the KV cache is too small\n"
    lines += "RuntimeError: Engine core initialization failed. See root cause above.\nbye\n"
    program.write_text(f"#!/bin/sh\ncat >&2 << END\n{lines}END\nexit 7\n")
    program.chmod(0o755)
    code, err = run(recipe(tmp_path, {"command": f"{program} serve"}), capsys)
    words = " ".join(err.split())
    assert code == 1 and "the server of vLLM did not start; it ended with exit code 7" in words
    assert "says: ValueError: the KV cache is too small" in words and "starting vLLM" in words
    program.write_text(
        "#!/bin/sh\n"
        "printf 'p.ValidationError: 1 validation error for M\\n"
        "  max_model_len\\n"
        "  bye\\n"
        "'\n"
        "exit 7\n"
    )
    code, err = run(recipe(tmp_path, {"command": f"{program} serve"}), capsys)
    assert (
        code == 1
        and "says: ValidationError: 1 validation error for M max_model_len" in " ".join(err.split())
    ), err


COMMAND = os.environ.get("ALIGNKIT_TEST_VLLM") or (
    f"{shutil.which('vllm')} serve" if shutil.which("vllm") else ""
)


@pytest.mark.slow
@pytest.mark.skipif(not COMMAND, reason="needs vLLM: `vllm`, or its command in ALIGNKIT_TEST_VLLM")
def test_a_real_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rules of the kit, and a run that starts a server; of SmolLM2, because `tiny` is too small
    for vLLM.
    """
    options = {
        "command": f"{COMMAND} --max-model-len 512 --max-num-seqs 8 --enforce-eager",
        "timeout": PATIENCE,
    }
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
    code, err = run(path, capsys)
    assert code == 0, err
    assert all(row["sampler_gap"] < 1e-3 for row in metrics(tmp_path))
