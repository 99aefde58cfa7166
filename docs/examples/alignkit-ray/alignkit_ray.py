"""A step's rows in workers of Ray, for a run that is started with RAY_ADDRESS (Moritz et al. 2018).

Each worker opens the stage, which loads the models once, and takes a chunk of rows at a time. Ray
starts another one for a worker that died, and gives it the same chunk.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from alignkit import Add, RunFailed, hookimpl

# Of the cluster, as Ray's own jobs have it; `local`: workers of this machine
ADDRESS = "RAY_ADDRESS"
AHEAD = 3  # chunks that wait for each worker
RESTARTS = 3  # of a worker that died
LOOK = 1.0  # seconds between looks at whether the run should stop


def executor(
    run: Any, stage: str, folder: Path, name: str
) -> Callable[[Iterable[Sequence[Any]]], Iterator[Any]] | None:
    if (
        ADDRESS not in os.environ
        or name not in run.recipe.stages[stage].component.registration.implementation.maps
    ):
        return None
    work = work_of(run, stage, folder, name)
    return lambda chunks: results(work, chunks, run.should_stop)


@hookimpl
def register(add: Add) -> None:
    add("executor", "ray", executor, "the rows of a step in workers of Ray")


@dataclass(frozen=True)
class Work:
    """One map of a stage, as a worker receives it: names and paths only.

    run: the folder of the run. recipe: its file, at which relative paths start. files, without: the
    plugins of the command. threads: of torch.
    """

    run: Path
    recipe: Path
    files: tuple[Path, ...]
    without: tuple[str, ...]
    stage: str
    folder: Path
    name: str
    threads: int


def work_of(run: Any, stage: str, folder: Path, name: str) -> Work:
    """The work of a map of a stage. run: an `alignkit.runs.run.Run`. folder: the stage's."""
    import torch

    from alignkit.host.plugins import plugins

    loaded = plugins()
    files = tuple(file.resolve() for file in loaded.files)
    recipe = run.recipe.path.resolve()
    threads = torch.get_num_threads()
    return Work(
        run.folder.resolve(), recipe, files, loaded.without, stage, folder.resolve(), name, threads
    )


def results(
    work: Work, chunks: Iterable[Sequence[Any]], should_stop: Callable[[], None]
) -> Iterator[Any]:
    """The results of each chunk, in order. Raises what a worker raised, and RunFailed for Ray's own
    errors.
    """
    try:
        import ray
    except ImportError as error:
        raise RunFailed(
            f"{ADDRESS} is set, but Ray is missing ({error})\nhelp: pip install ray"
        ) from None
    try:
        ray.init(ignore_reinit_error=True, configure_logging=False, log_to_driver=False)
        workers = _workers(ray, work)
        turns, most = cycle(workers), AHEAD * len(workers)
        waiting: deque[Any] = deque()
        for chunk in chunks:
            waiting.append(next(turns).results.remote(list(chunk)))
            if len(waiting) > most:
                yield _result(ray, waiting.popleft(), should_stop)
        while waiting:
            yield _result(ray, waiting.popleft(), should_stop)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    except (ray.exceptions.RayError, ConnectionError) as error:
        text = str(error).strip().splitlines()[0]
        raise RunFailed(
            f"Ray: {text}\nhelp: finished rows are kept, and the same command continues"
        ) from None
    finally:
        ray.shutdown()  # of a cluster only the connection, with which its workers for this run end


def _workers(ray: Any, work: Work) -> list[Any]:
    """A worker for each GPU; without GPUs one for as many processors as torch uses here."""
    machines = ray.cluster_resources()
    gpus = int(machines.get("GPU", 0))
    count = gpus or max(1, int(machines.get("CPU", 1)) // work.threads)
    needs = {"num_gpus": 1} if gpus else {"num_cpus": min(work.threads, machines.get("CPU", 1))}
    worker = ray.remote(max_restarts=RESTARTS, max_task_retries=RESTARTS, **needs)(Worker)
    return [worker.remote(work) for _ in range(count)]


def _result(ray: Any, reference: Any, should_stop: Callable[[], None]) -> Any:
    while not ray.wait([reference], timeout=LOOK)[0]:
        should_stop()
    return ray.get(reference)


class Worker:
    """A stage of a run, opened in another process."""

    def __init__(self, work: Work):
        import torch
        from rich.console import Console

        from alignkit.host.plugins import load_plugins
        from alignkit.io.console import Metrics, Reporter
        from alignkit.io.results import RECIPE
        from alignkit.recipe.load import build
        from alignkit.recipe.yaml import parse_document
        from alignkit.runs.run import Run
        from alignkit.runs.stage import StepStage

        torch.set_num_threads(work.threads)
        registry = load_plugins(work.files, work.without)
        text = (work.run / RECIPE).read_text(encoding="utf-8")
        recipe = build(parse_document(text, work.recipe), registry)
        run = Run(recipe, work.run, Reporter(Console(quiet=True), Console(quiet=True)))
        stage = run.stages[work.stage]
        assert isinstance(stage, StepStage)
        stage.folder = work.folder
        self.engine = ExitStack()  # lives as long as this process
        self.engine.enter_context(run.models_for(stage.spec))
        self.step = stage.plugin(stage.spec.component)
        self.function = self.step.mapper(work.name, stage.context(Metrics(None)))

    def results(self, rows: Sequence[Any]) -> list[Any]:
        """A result for each row of a chunk."""
        from alignkit.host.calls import attributed_to

        with attributed_to(self.step, "run"):
            return list(self.function(rows))
