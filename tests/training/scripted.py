"""A policy that says what a test wants, token by token: the tiny model with all other tokens
masked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from alignkit.models import generate as sampling_module

END = "<|im_end|>"
HEADER = "<|im_start|>assistant\n"


def call(expression: str, name: str = "calculate") -> str:
    """A turn that calls a tool, as the template `hermes` writes it."""
    return (
        "<tool_call>\n"
        f"{json.dumps({'name': name, 'arguments': {'expression': expression}})}\n"
        f"</tool_call>{END}"
    )


class Script:
    """A logits processor. turns: for each turn of the policy the texts that it may say; the model
    chooses.

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
            starts = [
                i + size for i in range(len(row) - size + 1) if row[i : i + size] == self.header
            ]
            said = row[starts[-1] :]
            texts = self.turns[len(starts) - 1] if len(starts) <= len(self.turns) else []
            allowed = [
                text[len(said)]
                for text in texts
                if text[: len(said)] == said and len(text) > len(said)
            ]
            if allowed:
                kept = values[allowed].clone()
                values.fill_(-torch.inf)
                values[allowed] = kept
        return logits


def choosing(monkeypatch: pytest.MonkeyPatch, processor_for: Callable[[Any], Any]) -> None:
    """Let policies write what a logits processor allows; log-probabilities stay the policy's.

    processor_for: makes it for an encoder. It is given prompt and response of one row at a time,
    and its logits.
    """
    contexts: list[Any] = []
    processors: list[Any] = []
    write, choose = sampling_module.Decoder.write, sampling_module.choose

    def written(self: Any, rows: Any, logits: torch.Tensor) -> torch.Tensor:
        processors[:] = [processor_for(self.request.encoder)]
        contexts[:] = []
        for row in rows:
            contexts.append(
                [*self.request.prompts[row.prompt], *row.tokens] if row.active else None
            )
        return write(self, rows, logits)

    def chosen(logits: torch.Tensor, draws: Any, sampling: Any, early: Any, ends: Any) -> Any:
        allowed = logits.clone()
        for row, context in enumerate(contexts):
            if context is not None:
                allowed[row : row + 1] = processors[0](
                    torch.tensor([context]), allowed[row : row + 1]
                )
        tokens, _ = choose(allowed, draws, sampling, early, ends)
        logprobs = torch.log_softmax(logits / (sampling.temperature or 1.0), dim=-1)
        return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]

    monkeypatch.setattr(sampling_module.Decoder, "write", written)
    monkeypatch.setattr(sampling_module, "choose", chosen)


def follow(monkeypatch: pytest.MonkeyPatch, turns: Sequence[Sequence[str]]) -> None:
    """Let policies write what a script says."""
    choosing(monkeypatch, lambda encoder: Script(encoder.tokenizer, turns))
