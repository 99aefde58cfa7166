"""What a training stage can use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignkit.recipe.schema import Stage
from alignkit.training.context import StageContext


def stage_context(run: Any, stage: Stage, folder: Path) -> StageContext:
    """The context of a training stage. run: a `Run`. folder: the stage's."""
    seed = run.seed_of(stage)
    return StageContext(
        stage=stage,
        models=run.models.of(stage.base),
        folder=folder,
        metrics=lambda size: run.metrics(stage, size),
        seed=seed,
        load=run.load,
        reward_context=lambda: run.reward_context(seed),
        folder_of=run.store.path,
        base_of=run.bases.base_of,
        models_of=lambda reference: run.models.of(run.bases.base_of(reference) or stage.base),
        bases=lambda: {base: run.models.of(base) for base in run.bases.needed(stage)},
        forget_scores=run.models.forget_scores,
        reporter=run.reporter,
        notify=run.notify(stage.name),
        should_stop=lambda: run.team.should_stop(run.should_stop),
        reducer=run.team.reducer,
    )
