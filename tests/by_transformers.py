"""What transformers says, without alignkit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit import Message


@torch.no_grad()
def logprobs(
    source: str | Path, prompt: Sequence[int], response: Sequence[int], temperature: float = 1.0
) -> torch.Tensor:
    """Log-probabilities of a response's tokens after those of a prompt."""
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    found = torch.log_softmax(logits / temperature, dim=-1)
    return found.gather(1, torch.tensor(response)[:, None])[:, 0]


def prompt_ids(source: str | Path, messages: Sequence[Message]) -> list[int]:
    """The tokens of a prompt in a model's own chat template."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
