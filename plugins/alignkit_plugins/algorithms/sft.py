"""Supervised learning: `sft` learns from demonstrations, `lm` from raw text.

Both minimize the cross-entropy, averaged over the tokens of the whole optimizer batch. `sft` counts
the assistant's tokens only. Differs from the papers: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from alignkit import (
    Algorithm,
    Batch,
    DataError,
    Field,
    Group,
    Loss,
    Needs,
    Outputs,
    SelectContext,
    StageDefaults,
    Term,
    per_token,
)
from alignkit.data.group import preview, why_not_demonstration


class Likelihood(Algorithm):
    """What methods have in common that make the tokens likelier that count."""

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(nll=per_token(-out.logprobs))


class SFT(Likelihood):
    """Make the assistant's turns of demonstrations likelier (InstructGPT, Ouyang et al. 2022,
    arXiv:2203.02155, section 3.5; Llama 2, Touvron et al. 2023, arXiv:2307.09288, section 3.1).
    """

    needs = Needs(likeliest=True)
    defaults = StageDefaults(
        learning_rate=1e-3, epochs=2, batch_size=16, lr_scheduler_type="cosine", warmup_ratio=0.05
    )

    class Options(Algorithm.Options):
        turns: Literal["all", "last"] = Field(
            "all", "assistant turns of a conversation to train on"
        )

    def trained_turns(self) -> str:
        return str(self.options.turns)

    def select(self, groups: Sequence[Group], context: SelectContext) -> Sequence[Group]:
        """The demonstrations. Others come from a source that skips bad rows, or raise DataError.

        The worse response of a comparison must not be learned, and of a row in which nothing counts
        nothing is.
        """
        kept, left_out = [], []
        for group in groups:
            fault = self._fault(group)
            if not fault:
                kept.append(group)
                continue
            if group.origin is None or not group.origin.skip:
                where = f"{group.origin}: " if group.origin else ""
                help = (
                    "\nhelp: `data: {path: FILE, on_bad_row: skip}` leaves out and counts such rows"
                )
                raise DataError(
                    f"{where}sft learns from demonstrations, but the row {preview(group)} {fault}"
                    + help * (len(group.responses) < 2)  # more have another format
                )
            left_out.append(group)
        if left_out:
            name = "validation_not_demonstrations" if context.validation else "not_demonstrations"
            context.left_out(name, len(left_out), left_out)
        return kept

    def _fault(self, group: Group) -> str:
        fault = why_not_demonstration(group)
        if fault and len(group.responses) > 1:
            fault += "; `oasst_paths` takes the best path of OpenAssistant's trees"
        if fault:
            return fault
        answers = [
            turn for turn in group.responses[0].messages or () if turn["role"] == "assistant"
        ]
        if self.options.turns == "last" and answers and not answers[-1].get("train", True):
            return (
                "has a last turn that must not be learned, but `turns: last` learns no other; "
                "use `turns: all`"
            )
        return ""

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        return {"accuracy": per_token(out.likeliest)}


class LM(Likelihood):
    """Make every token of raw text likelier."""

    defaults = StageDefaults(
        learning_rate=1e-3, epochs=1, batch_size=16, lr_scheduler_type="cosine", warmup_ratio=0.05
    )

    def select(self, groups: Sequence[Group], context: SelectContext) -> Sequence[Group]:
        """Raise DataError if a row is not raw text."""
        for group in groups:
            if group.prompt or len(group.responses) != 1:
                fault = "has a prompt" if group.prompt else f"has {len(group.responses)} texts"
                raise DataError(
                    f"lm needs raw text, but row {preview(group)} {fault}; use sft or dpo"
                )
        return groups
