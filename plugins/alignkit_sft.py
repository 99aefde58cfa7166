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
    Register,
    SelectContext,
    StageDefaults,
    hookimpl,
    per_token,
)
from alignkit.data.group import preview, why_not_demonstration


class SFT(Algorithm):
    """Learn demonstrations."""

    defaults = StageDefaults(learning_rate=2e-4, epochs=2, batch_size=16, lr_scheduler_type="cosine", warmup_ratio=0.05)

    class Options(Algorithm.Options):
        turns: Literal["all", "last"] = Field("all", description="assistant turns that are learned")

    def trained_turns(self) -> str:
        return str(self.options.turns)

    def select(self, groups: Sequence[Group], context: SelectContext) -> Sequence[Group]:
        """Raises DataError for what is no demonstration: of comparisons the worse response would be learned, too."""
        for group in groups:
            if fault := why_not_demonstration(group):
                raise DataError(f"sft learns demonstrations, but the row with the prompt {preview(group)} {fault}")
        return groups

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(nll=per_token(-out.logprobs))


class LM(Algorithm):
    """Learn raw text, every token of it."""

    defaults = StageDefaults(learning_rate=2e-4, epochs=1, batch_size=16, lr_scheduler_type="cosine", warmup_ratio=0.05)

    def select(self, groups: Sequence[Group], context: SelectContext) -> Sequence[Group]:
        """Raises DataError for what is no raw text."""
        for group in groups:
            if group.prompt or len(group.responses) != 1:
                raise DataError(
                    f"lm learns raw text, and the row {preview(group)} is none: sft, dpo ... learn such rows"
                )
        return groups

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(nll=per_token(-out.logprobs))


@hookimpl
def register_algorithms(register: Register) -> None:
    register("sft", SFT, summary="learn demonstrations: cross-entropy on the assistant's tokens")
    register("lm", LM, summary="learn raw text")
