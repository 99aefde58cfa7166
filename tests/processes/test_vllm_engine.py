"""The engine `vllm` with servers that answer as vLLM does, and with a real one where there is
one.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from patience import PATIENCE

from alignkit import RunFailed
from alignkit.contract.settings import LoraSpec, ModelSpec
from alignkit.host.plugins import load_plugins
from alignkit.io.text import cache_folder
from alignkit.models.shared_model import SharedModel
from alignkit.testing import check_engine
from alignkit.testing.engine_kit import POLICY, EngineCheck
from alignkit.testing.tiny import add_noise
from alignkit_plugins.bases import smollm2
from alignkit_plugins.vllm.engine import Vllm
from tests.models.tiny import tiny_model
from tests.processes.local_engine import asked, stage_engine
from tests.processes.vllm_server import Serve
from tests.rows import TINY, Said, cells, read_rows, run, write_recipe

ALIGN = """
align:
  algorithm: rloo
  prompts: prompts.jsonl
  reward: {length: {unit: characters}}
  rollout: {samples_per_prompt: 2, max_new_tokens: 5, async_level: 1}
  iterations: 3
  prompts_per_iteration: 3
  learning_rate: 0.01
"""

pytestmark = pytest.mark.usefixtures("one_thread")

# Whatever the model's generation_config.json says, a sample is of the policy itself.
NEUTRAL = yaml.safe_load("""
{repetition_penalty: 1.0, presence_penalty: 0.0, frequency_penalty: 0.0, min_p: 0.0}
""")


def test_it_means_what_other_engines_mean_and_sleeps_in_between(serve: Serve) -> None:
    """The kit computes between all calls, and the server answers nothing while it sleeps."""
    load_plugins()  # those of other tests may be left
    server = serve()
    server.asleep = True  # since a run that was killed
    check_engine(Vllm, {"url": f"{server.url}/v1", "sleep": True})
    paths = [path for path, _ in server.asked]
    # It is woken once more to begin with, and left awake and without adapters
    assert paths.count("/sleep?level=1") == paths.count("/wake_up") - 1 > 5
    assert not server.asleep and not server.adapters
    for body in server.paths("/v1/completions"):
        assert isinstance(body["prompt"], list) and body["return_token_ids"]
        assert body.items() >= NEUTRAL.items()


def test_servers_share_the_samples_of_the_current_adapter(serve: Serve, tmp_path: Path) -> None:
    """And sample ahead: the first one writes two iterations, and the last one none."""
    servers = [serve(), serve()]
    urls = [server.url for server in servers]
    folder = run(write_recipe(tmp_path, ALIGN, engine={"vllm": {"url": urls}}))
    sampled = [[body["model"] for body in server.paths("/v1/completions")] for server in servers]
    for server, models in zip(servers, sampled, strict=True):
        paths = [path for path, _ in server.asked]
        assert len(set(server.loaded)) == len(server.loaded) == 2 and not server.adapters
        unloaded = [body["lora_name"] for body in server.paths("/v1/unload_lora_adapter")]
        assert unloaded[1:] == server.loaded  # after the check
        # After the probe
        assert list(dict.fromkeys(models)) == ["served", *server.loaded] and len(models) >= 1 + 6
        assert not {"/sleep?level=1", "/wake_up"} & {*paths}
    counts = [sum(models.count(name) for models in sampled) for name in servers[0].loaded]
    assert counts == [12, 6]
    rows = read_rows(folder / "align" / "metrics.jsonl")
    assert [row["async_level"] for row in rows] == [0, 1, 1] and rows[0]["engine_mismatch"] < 1e-4


def problem(folder: Path, **options: Any) -> str:
    """Why the engine cannot sample with these options, on one line."""
    model, engine = tiny_model(), stage_engine(folder, Vllm, **options)
    model.add_role("one")
    try:
        with pytest.raises(RunFailed) as raised:
            engine.request(asked(model, "one", max_new_tokens=8)).result()
    finally:
        engine.close()
    text = str(raised.value)
    assert text.startswith("stage 's', engine 'vllm': ")
    assert text.endswith("help: the same command continues the run")
    return " ".join(text.split())


OTHER_ANSWERS = yaml.safe_load("""
- [{prompt_token_ids: [1, 2]}, it read another prompt than it was sent]
- [{logprobs: null}, "its answer cannot be read: TypeError"]
- [{logprobs: {token_logprobs: []}}, tokens have 0 log-probabilities]
""")


@pytest.mark.parametrize(("changed", "said"), OTHER_ANSWERS)
def test_a_server_that_answers_wrongly_is_refused_and_keeps_no_adapter(
    serve: Serve, tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    server = serve()
    server.change = lambda choice: choice if "prompt_logprobs" in choice else choice | changed
    text = problem(tmp_path, url=server.url)
    assert f"{server.url} cannot be used: " in text and said in text
    assert server.loaded and not server.adapters


# A server, more of its options, and what is said.
UNFIT = yaml.safe_load("""
- [{key: secret}, {}, "wants a key: name its environment variable in api_key_env"]
- [{key: secret}, {api_key_env: VLLM_KEY}, takes another key than the variable in api_key_env holds]
- [{replies: {/v1/unload_lora_adapter: [404, Not Found]}}, {},
   "--enable-lora, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"]
- [{processed: false}, {}, start it with --logprobs-mode processed_logprobs]
- [{room: 10}, {}, "has 11 tokens, and the server takes 10; start it with --max-model-len 11"]
- [{replies: {/tokenize: [200, '{"tokens": [5]}']}}, {}, it serves served; start it with]
- [{replies: {/tokenize: [500, busy]}}, {}, "cannot be used: HTTP 500: busy"]
- [{replies: {/tokenize: [200, "?"]}}, {}, "its answer to /tokenize is not JSON: ?"]
- [{replies: {/v1/models: [200, '{"data": []}']}}, {}, "is no server of vLLM: as its list"]
- [{replies: {/v1/load_lora_adapter: [404, No adapter found for /x]}}, {}, the file system of this machine]
- [{replies: {/v1/load_lora_adapter: [500, LoRA rank 4 is greater]}}, {}, with a larger --max-lora-rank]
- [{replies: {/wake_up: [404, ""]}}, {sleep: true}, with VLLM_SERVER_DEV_MODE=1 in its]
""")


@pytest.mark.parametrize(("server", "options", "said"), UNFIT)
def test_servers_that_do_not_fit_are_refused(
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    server: dict[str, Any],
    options: dict[str, Any],
    said: str,
) -> None:
    monkeypatch.setenv("VLLM_KEY", "other")
    found = serve(**server)
    text = problem(tmp_path, url=found.url, **options)
    assert said in text and (found.url in text or "room" in server)
    assert len(found.paths("/v1/completions")) <= 1  # the probe


def test_a_server_with_other_weights_is_refused(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    with torch.no_grad():
        for parameter in server.model.model.parameters():
            parameter.mul_(1.3)
    text = problem(tmp_path, url=server.url)
    assert "has other weights than" in text and "nats per token, more than 0.1" in text


def test_samples_of_filters_have_no_log_probabilities(serve: Serve, tmp_path: Path) -> None:
    model, engine = tiny_model(), stage_engine(tmp_path, Vllm, url=serve().url)
    for filters in ({"top_k": 5}, {"top_p": 0.5}, {"min_new_tokens": 2}):
        ((one,),) = engine.request(asked(model, **filters)).result()
        assert one.logprobs is None
    ((one,),) = engine.request(asked(model, temperature=0.0, top_k=5)).result()
    assert one.logprobs is not None and engine.engine._replicas.all[0].active == 0
    engine.close()


def test_a_server_is_asked_for_no_more_than_it_has_room_for(serve: Serve, tmp_path: Path) -> None:
    server = serve(room=1024)
    engine = stage_engine(tmp_path, Vllm, url=server.url)
    prompts = [(1, 30), (30,) * 1020]
    engine.request(asked(tiny_model(), seeds=((1,), (2,)), prompts=prompts, rooms=(8, 4))).result()
    engine.close()
    limits = [body["max_tokens"] for body in server.paths("/v1/completions")]
    assert sorted(limits[-2:]) == [4, 8]


MISTAKES = """
url=http://127.0.0.1:9          | cannot be used: ConnectError
url=http://127.0.0.1:9          | start one there, or change 'url'
url=https://HERE                | does it begin with http://?
url=http://HERE/v1/completions  | name the address only
command=vllm 'y                 | No closing quotation
command=''                      | names no program
command=no-such-program         | install vLLM into its own environment
"""


def test_mistakes_are_found_before_a_run_begins(serve: Serve, tmp_path: Path, said: Said) -> None:
    recipe = write_recipe(tmp_path, ALIGN, engine="vllm")
    for override, message in cells(MISTAKES.replace("HERE", serve().url.removeprefix("http://"))):
        run(recipe, f"engine.vllm.{override}", code=2)
        assert message in " ".join(said().split())
    assert not (tmp_path / "run" / "align").exists()


# A server of the run's own

LOG = """(EngineCore) ERROR [core.py:1] ValueError: the KV cache is too small
RuntimeError: Engine core initialization failed. See root cause above.
bye
"""
PROGRAM = """#!/bin/sh
echo "p.ValidationError: 1 validation error for M
  $*
  $VLLM_SERVER_DEV_MODE
"
exit 7
"""
SERVED = (
    "serve {base} --dtype float32 --enable-lora --max-lora-rank 8 --logprobs-mode "
    "processed_logprobs --generation-config vllm --host 127.0.0.1 --port"
)


def test_a_server_is_started_with_what_training_has_and_says_why_it_did_not(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ncat >&2 << END\n{LOG}END\nexit 7\n")
    program.chmod(0o755)
    text = problem(tmp_path, command=f"{program} serve")
    assert "the server of vLLM did not start; it ended with exit code 7" in text
    assert "says: ValueError: the KV cache is too small" in text
    program.write_text(PROGRAM)
    text = problem(tmp_path, command=f"{program} serve", sleep=True)
    words = f"1 validation error for M {SERVED.format(base=tiny_model().source)} "
    assert words in text and " --enable-sleep-mode" in text


COMMAND = os.environ.get("ALIGNKIT_TEST_VLLM") or shutil.which("vllm")


@pytest.mark.slow
@pytest.mark.skipif(not COMMAND, reason="needs vLLM: `vllm`, or its command in ALIGNKIT_TEST_VLLM")
def test_a_real_server(tmp_path: Path) -> None:
    """The rules of the kit, and a run that starts a server; of SmolLM2, because `tiny` is too small
    for vLLM.
    """
    flags = "serve --max-model-len 512 --max-num-seqs 8 --enforce-eager"
    options = {"command": f"{COMMAND} {flags}", "timeout": PATIENCE}
    base = {**TINY, "base": "smollm2-135m-instruct", "device": "cpu"}
    spec = ModelSpec(**base, lora=LoraSpec(r=8, lora_alpha=16))
    model = SharedModel(spec, str(smollm2.source(cache_folder())))
    model.end_ids = (*model.end_ids, *range(200, 2000, 3))  # so that some responses end
    engine = stage_engine(tmp_path, Vllm, **options)
    model.add_role(POLICY)
    add_noise(model, POLICY, 0.02, 1)
    try:
        (check := EngineCheck(engine, model, 1e-3)).check()
        assert not check.problems
    finally:
        engine.close()
    folder = run(write_recipe(tmp_path, ALIGN, base, engine={"vllm": options}))
    assert read_rows(folder / "align" / "metrics.jsonl")[0]["engine_mismatch"] < 1e-3
