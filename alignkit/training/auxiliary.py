"""A second stream of data mixed into every step (`mix`; InstructGPT's ptx)."""

from __future__ import annotations

from dataclasses import dataclass

from alignkit.data.group import preview, why_not_demonstration
from alignkit.errors import DataError
from alignkit.tokens.encoder import Encoded
from alignkit.training.context import StageContext
from alignkit.training.encoding import StageEncoder
from alignkit.training.sampler import Sampler, make_sampler, report

OBJECTIVES = {"text": "raw text, without prompts", "sft": "demonstrations: prompts with one response"}


@dataclass
class AuxiliaryLoss:
    """Cross-entropy on separate groups, added to every step's loss.

    weight: factor of the token mean. batch_size: groups per step. draws: the order of the groups.
    """

    groups: list[Encoded]
    weight: float
    batch_size: int
    draws: Sampler

    def batch(self, step: int) -> list[Encoded]:
        """The groups of a step (counted from 0). They depend only on the step, so that a resumed run draws the same."""
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [self.groups[self.draws.at(position)] for position in places]


def auxiliary_loss(context: StageContext, encoder: StageEncoder) -> AuxiliaryLoss | None:
    """The stage's `mix`, if it has one. Raises DataError if its rows do not suit its objective."""
    mix = context.settings.mix
    if mix is None or mix.weight == 0:
        return None
    loaded = context.load(mix.data)
    groups = loaded.groups
    if any(bool(group.prompt) != (mix.objective == "sft") or len(group.responses) != 1 for group in groups):
        raise DataError(f"{context.name}.mix: objective '{mix.objective}' needs {OBJECTIVES[mix.objective]}")
    for group in groups if mix.objective == "sft" else ():
        if fault := why_not_demonstration(group):
            raise DataError(f"{context.name}.mix: the row {preview(group)} {fault}")
    encoder.count_read(groups)
    # All turns, whichever the algorithm learns of its own data: only a label belongs to the last one.
    encoded = encoder.encode(groups, turns="all")
    if not encoded:
        raise DataError(f"{context.name}.mix.data has no usable row")
    draws = make_sampler(loaded, [e.group for e in encoded], context.seed, context.name, "mix")
    encoder.summary.update(report(context, "mix", loaded, draws))
    return AuxiliaryLoss(encoded, mix.weight, mix.batch_size or context.settings.batch_size or 1, draws)
