"""A policy that says what a test wants, token by token: the tiny model with all other tokens
masked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

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


Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def choosing(monkeypatch: pytest.MonkeyPatch, processor_for: Callable[[Any], Processor]) -> None:
    """Let policies write what a logits processor allows; log-probabilities stay the policy's.

    processor_for: makes it for an encoder. It is given prompt and response of one row at a time,
    and its logits.
    """
    waiting: list[Any] = []
    write, choose = sampling_module.Decoder.write, sampling_module.choose

    def written(self: Any, rows: Any, logits: torch.Tensor, ahead: int) -> torch.Tensor:
        processor, prompts = processor_for(self.request.encoder), self.request.prompts
        waiting[:] = [processor]
        waiting.extend([*prompts[row.prompt], *row.tokens] if row.active else None for row in rows)
        return write(self, rows, logits, ahead)

    def chosen(logits: torch.Tensor, draws: Any, sampling: Any, early: Any, ends: Any) -> Any:
        (processor, *contexts), allowed = waiting, logits.clone()
        for row, context in enumerate(contexts):
            if context is not None:
                allowed[[row]] = processor(torch.tensor([context]), allowed[[row]])
        tokens, _ = choose(allowed, draws, sampling, early, ends)
        logprobs = torch.log_softmax(logits / (sampling.temperature or 1.0), dim=-1)
        return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]

    monkeypatch.setattr(sampling_module.Decoder, "write", written)
    monkeypatch.setattr(sampling_module, "choose", chosen)


def follow(monkeypatch: pytest.MonkeyPatch, turns: Sequence[Sequence[str]]) -> None:
    """Let policies write what a script says. turns: for each turn of the policy the texts that it
    may say; the model chooses. After the last one it says whatever it likes.
    """

    def script(encoder: Any) -> Processor:
        def ids_of(text: str) -> list[int]:
            return list(encoder.tokenizer(text, add_special_tokens=False)["input_ids"])

        def allow(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            row, header = ids[0].tolist(), ids_of(HEADER)
            ends = range(len(header), len(row) + 1)
            starts = [end for end in ends if row[end - len(header) : end] == header]
            said, texts = row[starts[-1] :], [*turns, *[[]] * len(starts)][len(starts) - 1]
            going_on = [text for text in map(ids_of, texts) if text[: len(said)] == said]
            allowed = [text[len(said)] for text in going_on if len(text) > len(said)]
            only = torch.full_like(logits, -torch.inf)
            only[:, allowed] = logits[:, allowed]
            return only if allowed else logits

        return allow

    choosing(monkeypatch, script)
