"""A policy that says what a test wants, token by token: the tiny model with all other tokens masked."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from alignkit.models import generate as sampling_module
from alignkit.training import requests

END = "<|im_end|>"
HEADER = "<|im_start|>assistant\n"


def call(expression: str, name: str = "calculate") -> str:
    """A turn that calls a tool, as the template `hermes` writes it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': {'expression': expression}})}\n</tool_call>{END}"


class Script:
    """A logits processor. turns: for each turn of the policy the texts that it may say; the model chooses.

    After the last turn it says whatever it likes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, turns: Sequence[Sequence[str]]):
        self.header = self._ids(tokenizer, HEADER)
        self.turns = [[self._ids(tokenizer, text) for text in texts] for texts in turns]

    @staticmethod
    def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def __call__(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        for row, values in zip(ids.tolist(), logits, strict=True):
            size = len(self.header)
            starts = [i + size for i in range(len(row) - size + 1) if row[i : i + size] == self.header]
            said = row[starts[-1] :]
            texts = self.turns[len(starts) - 1] if len(starts) <= len(self.turns) else []
            allowed = [text[len(said)] for text in texts if text[: len(said)] == said and len(text) > len(said)]
            if allowed:
                kept = values[allowed].clone()
                values.fill_(-torch.inf)
                values[allowed] = kept
        return logits


def follow(monkeypatch: pytest.MonkeyPatch, turns: Sequence[Sequence[str]]) -> None:
    """Let online stages sample what a script says."""

    def sample(model: Any, role: Any, encoder: Any, groups: Any, sampling: Any, **named: Any) -> Any:
        script: Callable[..., Any] = Script(encoder.tokenizer, turns)
        return sampling_module.sample(model, role, encoder, groups, sampling, processors=[script], **named)

    monkeypatch.setattr(requests, "sample", sample)
