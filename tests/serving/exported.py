"""What the models of a run compute, to compare exports of them with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit import Response
from alignkit.cli import main
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import Run
from tests.models.architectures import logprobs_alone
from tests.rows import TINY, WORDS, assistant, prompts, run, write_recipe

# Conversations to compare numbers on
GROUPS = prompts(WORDS, responses=(Response(text="good old bread"),))


def train(folder: Path, model: dict[str, Any], stages: Any = None, **sft: Any) -> Path:
    """The finished run of some stages, by default of three steps of SFT."""
    learn = {"max_steps": 3, "learning_rate": 0.02, "batch_size": 1, **sft}
    stages = stages or {"sft": {"algorithm": "sft", "data": "demos.jsonl", **learn}}
    return run(write_recipe(folder, stages, {**TINY, **model}))


def models_of(finished: Path) -> Any:
    """The models of a run."""
    return Run(load_recipe(finished.parent / "recipe.yaml"), finished).models


def export(*words: object, code: int = 0) -> None:
    assert main(["export", *map(str, words)]) == code


def check_logprobs(model: Any, tokenizer: Any, finished: Path, role: str) -> None:
    """A causal language model computes the log-probabilities of a role of the run."""
    models = models_of(finished)
    ours, plain = models[role].logprobs(GROUPS), models["base"].logprobs(GROUPS)
    assert any((one - other).abs().max() > 0.01 for one, other in zip(ours, plain, strict=True))
    for group, wanted in zip(GROUPS, ours, strict=True):
        turns, encoded = list(group.prompt), models.of("base").encoder.encode(group, 256)
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        assert tuple(tokenizer(text, add_special_tokens=False).input_ids) == encoded.prompt
        logprobs = logprobs_alone(model, encoded.prompt, encoded.responses[0].tokens)
        torch.testing.assert_close(logprobs, wanted, atol=1e-5, rtol=1e-5)


def check_scores(model: Any, tokenizer: Any, finished: Path) -> None:
    """A classifier gives the scores of the run's reward model, alone and in padded batches."""
    wanted, texts = models_of(finished)["liked"].scores(GROUPS), []
    for group in GROUPS:
        turns = [*group.prompt, assistant(group.responses[0].text)]
        texts.append(tokenizer.apply_chat_template(turns, tokenize=False))
    assert len(set(wanted)) > 1
    rows, how = [texts, *([text] for text in texts)], {"add_special_tokens": False}
    with torch.no_grad():
        together, *alone = [
            model(**tokenizer(row, padding=True, return_tensors="pt", **how)).logits[:, 0].tolist()
            for row in rows
        ]
    assert together == pytest.approx(wanted, abs=1e-5)
    assert [each for (each,) in alone] == pytest.approx(wanted, abs=1e-5)
