"""A training stage, by what its algorithm learns from."""

from __future__ import annotations

from typing import Any

from alignkit.algorithm import ROLLOUTS, Algorithm, Runner
from alignkit.dataset_stage import Dataset
from alignkit.rollout_stage import Rollouts
from alignkit.training import StageRun


def run_training(run: StageRun) -> dict[str, Any]:
    """Run a training stage to its end, from its last checkpoint if there is one; gives the summary for stage.json."""
    algorithm: Algorithm = run.stage.component.claim.thing(run.stage.component.options)
    if isinstance(algorithm, Runner):
        return dict(algorithm.train(run))
    work = Rollouts(run, algorithm) if algorithm.source is ROLLOUTS else Dataset(run, algorithm)
    try:
        return work.run()
    finally:
        work.close()
