"""Supervised learning: `sft` learns demonstrations, `lm` raw text.

Both minimize the cross-entropy, averaged over the tokens of the whole optimizer batch. `sft` counts the assistant's
tokens only (InstructGPT, Ouyang et al. 2022, arXiv:2203.02155, section 3.5; Llama 2, Touvron et al. 2023,
arXiv:2307.09288, section 3.1). Differs from the papers: nothing.
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
    """Make the assistant's turns of demonstrations likelier."""

    defaults = StageDefaults(learning_rate=2e-4, epochs=2, batch_size=16, lr_scheduler_type="cosine", warmup_ratio=0.05)

    class Options(Algorithm.Options):
        turns: Literal["all", "last"] = Field("all", description="assistant turns of a conversation to train on")

    def trained_turns(self) -> str:
        return str(self.options.turns)

    def select(self, groups: Sequence[Group], context: SelectContext) -> Sequence[Group]:
        """Raise DataError if a row is not a demonstration: the worse response of a comparison would be learned, too."""
        for group in groups:
            if fault := why_not_demonstration(group):
                raise DataError(f"sft learns demonstrations, but the row with the prompt {preview(group)} {fault}")
        return groups

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(nll=per_token(-out.logprobs))


class LM(Algorithm):
    """Make every token of raw text likelier."""

    defaults = StageDefaults(learning_rate=2e-4, epochs=1, batch_size=16, lr_scheduler_type="cosine", warmup_ratio=0.05)

    def select(self, groups: Sequence[Group], context: SelectContext) -> Sequence[Group]:
        """Raise DataError if a row is not raw text."""
        for group in groups:
            if group.prompt or len(group.responses) != 1:
                fault = "has a prompt" if group.prompt else f"has {len(group.responses)} texts"
                raise DataError(f"lm needs raw text, but row {preview(group)} {fault}; use sft or dpo")
        return groups

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(nll=per_token(-out.logprobs))


@hookimpl
def register_algorithms(register: Register) -> None:
    register("sft", SFT, summary="train on demonstrations: cross-entropy on the assistant's tokens")
    register("lm", LM, summary="train on raw text: cross-entropy on every token")
