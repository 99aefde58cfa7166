"""A training stage, by what its algorithm learns from."""

from __future__ import annotations

from typing import Any

from alignkit.algorithm import ROLLOUTS, Algorithm
from alignkit.external import ExternalTrainer
from alignkit.training.offline import Dataset
from alignkit.training.online import OnlineStage
from alignkit.training.stage import StageContext


def run_training(run: StageContext) -> dict[str, Any]:
    """Run a training stage to its end, from its last checkpoint if there is one; gives the summary for stage.json."""
    algorithm: Algorithm = run.stage.component.registration.implementation(run.stage.component.options)
    if isinstance(algorithm, ExternalTrainer):
        return dict(algorithm.train(run))
    work = OnlineStage(run, algorithm) if algorithm.source is ROLLOUTS else Dataset(run, algorithm)
    try:
        return work.run()
    finally:
        work.close()
