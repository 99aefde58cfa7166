"""Lets the engine of a stage sample while the stage runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import count
from typing import Any

from alignkit.launcher import launcher
from alignkit.models.models import LoadedBase
from alignkit.models.shared_model import BASE
from alignkit.recipe.schema import Stage
from alignkit.sampling import Sampling


@contextmanager
def using_engine(run: Any, stage: Stage) -> Iterator[None]:
    """Let the stage's engine, if it has one, sample instead of the run's models: one for each base model.

    run: a `Run`; it calls `attach_engine` with each service that it opens.
    """
    if stage.engine is None:
        yield
        return
    run.reporter.say(
        f"samples: {stage.engine.name}; local: log-probabilities, scores of reward models, verdicts of one token"
    )
    opened, numbers = ExitStack(), count()  # all are closed, also if closing one of them is interrupted

    def attach(service: LoadedBase) -> None:
        engine = run.engine_of(stage, run.folder / "cache" / f"engine-{next(numbers)}")
        opened.callback(engine.close)
        service.model.engine = engine

    before, run.attach_engine = run.attach_engine, attach
    for service in run.models.bases.values():
        attach(service)
    try:
        yield
    finally:
        run.attach_engine = before
        for service in run.models.bases.values():
            service.model.engine = None
        opened.close()


def meet_engines(run: Any, stages: Sequence[Stage]) -> None:
    """Let engines that run already compare their base with the run's, before stages that may take hours.

    stages: those of a `Run` that are not complete. The first one asks its engine soon enough, and its base models are
    loaded now or a moment later; others are not loaded for this.
    """
    loaded, met = run.bases.needed(stages[0]), {id(stages[0].engine)}
    run.stage_name = stages[0].name  # whose base models these are
    for stage in stages[1:]:
        if stage.engine is None or not stage.engine.options.runs or stage.base not in loaded or id(stage.engine) in met:
            continue
        met.add(id(stage.engine))
        service, folder = run.models.of(stage.base), run.folder / "cache" / "engine"
        sampling = Sampling() if stage.settings is None else stage.settings.rollout
        asked = launcher().engine(stage.engine, folder, stage=stage.name, seed=0, say=lambda line: None)
        with closing(asked):
            asked.request(service.model, BASE, service.encoder, [], [], sampling).result()
