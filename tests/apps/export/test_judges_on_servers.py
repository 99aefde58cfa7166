"""Judges in words on real servers, which make SmolLM2's reply by a schema: llama.cpp, and vLLM as in test_vllm.py.

By itself, so small a model writes no verdict that could be read.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_gguf_file import Server
from test_vllm import VLLM, served
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit import Context
from alignkit.io.cache import cache_folder
from alignkit_apps.export.gguf_file import write_gguf
from alignkit_plugins.judges.llm.server import OpenAIJudge
from alignkit_plugins.models import smollm2

QUESTIONS = ("What is the capital of France?", "Name a fruit.")  # few, because a processor takes seconds for each
ANSWERS = ("Paris.", "An apple.")

pytestmark = pytest.mark.slow  # a download of 93 MB


def test_llama_cpp(tmp_path: Path) -> None:
    folder = smollm2.source(cache_folder())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    write_gguf(model, AutoTokenizer.from_pretrained(folder), 2, tmp_path / "m.gguf", "float32", "m")
    server = Server(tmp_path / "m.gguf", 8192)  # it ends when nothing refers to it
    check(server.address, tmp_path)


@pytest.mark.skipif(not VLLM, reason="vLLM is not installed; see ALIGNKIT_VLLM")
def test_vllm(tmp_path: Path) -> None:
    command = f"vllm serve '{smollm2.source(cache_folder())}' --served-model-name judge --max-model-len 1024"
    with served(command, tmp_path / "log") as server:
        check(server.address, tmp_path)


def check(address: str, folder: Path) -> None:
    """Verdicts and ratings can be read, and their tokens are counted."""
    options = {"base_url": f"{address}/v1", "model": "judge", "json_schema": True, "max_tokens": 150, "price": (1, 1)}
    judge = OpenAIJudge(OpenAIJudge.Options(reasons=True, timeout_seconds=600, concurrency=1, **options))
    judge.prepare(Context(models=None, cache=folder / "cache", folder=folder, seed=0, load=list))
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    verdicts = judge.compare([(prompt, text, "No.") for prompt, text in zip(prompts, ANSWERS, strict=True)])
    known = [verdict for verdict in verdicts if verdict.p_first is not None]
    assert known, [verdict.reason for verdict in verdicts]
    assert all(set(verdict.p_orders or ()) <= {0.0, 0.5, 1.0} for verdict in known)
    assert all(verdict.tokens and verdict.cost == pytest.approx(verdict.tokens / 1000) for verdict in verdicts)
    ratings = judge.rate(list(zip(prompts, ANSWERS, strict=True)))
    scores = [rating.score for rating in ratings if rating.score is not None]
    assert scores and all(1 <= score <= 9 for score in scores), [rating.reason for rating in ratings]
