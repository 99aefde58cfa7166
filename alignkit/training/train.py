"""Runs a training stage of any kind: over a data set, in iterations, or by an external trainer."""

from __future__ import annotations

from typing import Any

from alignkit.algorithm import ROLLOUTS, Algorithm
from alignkit.external import ExternalTrainer
from alignkit.plugin_errors import made
from alignkit.training.context import StageContext
from alignkit.training.external import ExternalStage
from alignkit.training.learning_rate import with_learning_rate
from alignkit.training.offline import OfflineStage
from alignkit.training.online import OnlineStage


def run_training(context: StageContext) -> dict[str, Any]:
    """Train to the end, from the last checkpoint if there is one; returns the summary for stage.json."""
    algorithm: Algorithm
    algorithm, _ = made(context.stage.component, context.name)
    stage: OfflineStage | OnlineStage | ExternalStage
    context = with_learning_rate(context, algorithm.defaults)
    if isinstance(algorithm, ExternalTrainer):
        stage = ExternalStage(context, algorithm)
    elif algorithm.source is ROLLOUTS:
        stage = OnlineStage(context, algorithm)
    else:
        stage = OfflineStage(context, algorithm)
    try:
        return {**stage.run(), "learning_rate": context.settings.learning_rate}
    finally:
        stage.close()
