"""Lets the engine of a stage sample while the stage runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any

from alignkit.models.service import ModelService
from alignkit.plugins import launcher
from alignkit.recipe.schema import Stage


@contextmanager
def using_engine(run: Any, stage: Stage) -> Iterator[None]:
    """Let the stage's engine, if it has one, sample instead of the run's models: one for each base model.

    run: calls `run.attach_engine` with each service that it opens.
    """
    if stage.engine is None:
        yield
        return
    run.reporter.say(
        f"samples: {stage.engine.name}; local: log-probabilities, scores of reward models, verdicts of one token"
    )
    opened, numbers = ExitStack(), count()  # all are closed, also if closing one of them is interrupted

    def attach(service: ModelService) -> None:
        folder, seed = run.folder / "cache" / f"engine-{next(numbers)}", run.seed_of(stage)
        engine = launcher().engine(stage.engine, folder, stage=stage.name, seed=seed, say=run.reporter.say)
        opened.callback(engine.close)
        service.model.engine = engine

    before, run.attach_engine = run.attach_engine, attach
    for service in run.models.services.values():
        attach(service)
    try:
        yield
    finally:
        run.attach_engine = before
        for service in run.models.services.values():
            service.model.engine = None
        opened.close()
