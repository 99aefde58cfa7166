"""SFT: cross-entropy on the assistant's tokens (InstructGPT 2022, section 3.5; Llama 2 2023, section 3.1), and `lm`,
the same on raw text.

Differs from the papers: nothing. The mean is over the counted tokens of the whole optimiser batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from alignkit import (
    Algorithm,
    Batch,
    DataError,
    Field,
    Group,
    Loss,
    Outputs,
    SelectContext,
    StageDefaults,
    hookimpl,
    per_token,
)

SHOWN = 60  # characters of a prompt in an error


class SFT(Algorithm):
    """Learn demonstrations."""

    defaults = StageDefaults(learning_rate=2e-4, epochs=2, batch_size=16, lr_scheduler_type="cosine", warmup_ratio=0.05)

    class Options(Algorithm.Options):
        turns: Literal["all", "last"] = Field("all", description="assistant turns that are learned")

    def turns(self) -> str:
        return str(self.options.turns)

    def select(self, groups: Sequence[Group], context: SelectContext) -> Sequence[Group]:
        """Raises DataError for comparisons, whose worse responses would be learned as well."""
        for group in groups:
            if fault := _fault(group):
                raise DataError(f"sft learns demonstrations, but the row {_beginning(group)} {fault}")
        return groups

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        assert out.logprobs is not None
        return Loss(nll=per_token(-out.logprobs))


def _fault(group: Group) -> str:
    """Why a group is no demonstration, and what it is good for; empty where it is one."""
    count = len(group.responses)
    if count == 0:
        return "has no response; prompts alone are for algorithms that sample (ppo, grpo ...)"
    if count > 1:
        return f"has {count} responses, which would all be learned; comparisons are for reward_model or dpo"
    if group.responses[0].label is False:
        return "has a thumbs down and would be learned all the same; leave such rows out, or use kto"
    return ""


def _beginning(group: Group) -> str:
    """A row as a person knows it: by its first words, for the id is a hash."""
    messages = [message for message in group.prompt if message["role"] == "user"] or list(group.prompt)
    words = " ".join(messages[0]["content"].split()) if messages else ""
    return f"with the prompt '{words if len(words) <= SHOWN else words[:SHOWN] + '...'}'"


class LM(Algorithm):
    """Learn raw text, every token of it."""

    defaults = StageDefaults(learning_rate=2e-4, epochs=1, batch_size=16, lr_scheduler_type="cosine", warmup_ratio=0.05)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        assert out.logprobs is not None
        return Loss(nll=per_token(-out.logprobs))


@hookimpl
def register_algorithms(register):  # type: ignore[no-untyped-def]
    register("sft", SFT, summary="learn demonstrations: cross-entropy on the assistant's tokens")
    register("lm", LM, summary="learn raw text")
