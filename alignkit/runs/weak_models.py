"""Reward models that are hardly better than chance, named before a stage learns from them or is judged by them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from alignkit.io.stage_results import read_record
from alignkit.recipe.schema import RewardSpec, Stage, specs

WEAK = 0.6  # accuracy on validation pairs; 0.5 is chance


def weak_models(stage: Stage) -> Iterator[str]:
    """A warning per folder with a reward model of a run whose accuracy on its validation pairs is below WEAK."""
    rewards = specs([stage.settings, stage.component.options], RewardSpec)
    for name in dict.fromkeys(spec.name for spec in rewards if spec.kind == "folder"):
        record = read_record(Path(name)) or read_record(Path(name).parent)  # of RUN/STAGE/adapter
        accuracy = ((record.get("summary") or {}).get("validation") or {}).get("accuracy")
        if isinstance(accuracy, float) and accuracy < WEAK:
            yield (
                f"warning: {name} was right on {accuracy:.0%} of its validation pairs; below {WEAK:.0%} a reward model "
                "says little. Train it on more pairs, or on pairs on which people agree"
            )
