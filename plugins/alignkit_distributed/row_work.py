"""The work of an executor's workers: a stage of a run, opened in another process, and blocks of its rows."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from rich.console import Console

from alignkit import kernels, stopping
from alignkit.data.group import group_from_json
from alignkit.errors import PluginError, RunFailed
from alignkit.io.digest import versions
from alignkit.io.progress import Reporter
from alignkit.plugin_errors import calling, made
from alignkit.plugins import load_plugins, plugins
from alignkit.recipe.document import parse_document
from alignkit.recipe.load import build
from alignkit.recipe.schema import Recipe, RewardSpec, Stage, specs
from alignkit.runs.engines import using_engine
from alignkit.runs.files import RECIPE
from alignkit.runs.step_context import StepRows, scored, step_context
from alignkit.training.scoring import Scorer
from alignkit_distributed.row_blocks import STOP, Block, failure

LOOK = 0.5  # seconds between looks at whether the run is over
_engines = ExitStack()  # of the open stage; they live as long as this process


@dataclass(frozen=True)
class StageWork:
    """Implements `alignkit.Work`: one map of one stage. It holds names and paths only.

    run: folder of the run. recipe: path of the recipe, at which relative paths start. plugins: files and disabled
    names. name: of the map. size: rows in a chunk. leaf: place and name of the reward that scores the rows; None: the
    step's mapper. threads: of torch. process: what results depend on, which must be the same here, as JSON. made_in:
    the run's own process. make: the class `Run`.
    """

    run: str
    recipe: str
    plugins: tuple[tuple[str, ...], tuple[str, ...]]
    stage: str
    folder: str
    name: str
    size: int
    leaf: tuple[int, str] | None
    threads: int
    process: str
    made_in: str
    make: Callable[..., Any]

    def __call__(self, block: str) -> str:
        plain = json.loads(block)
        try:
            opened = _opened(self)
        except Exception as raised:
            return failure(plain["start"], raised)
        place = Path(self.folder) / "map" / self.name
        if self.made_in != _here():  # an executor may call it in the run's own process, which outlives the stage
            _end_with(place / STOP)
        return Block(place, **plain).reply(opened, self.size, stopping.should_stop)


def stage_work(
    run: Any, stage: Stage, folder: Path, name: str, size: int, leaf: tuple[int, str] | None = None
) -> StageWork:
    """The work of one map of a stage, to be sent to workers. run: a `Run`. Other arguments: as in `StageWork`."""
    import torch

    loaded = plugins()
    return StageWork(
        str(run.folder.resolve()),
        str(run.recipe.path.resolve()),
        (tuple(str(file.resolve()) for file in loaded.files), loaded.without),
        stage.name,
        str(folder.resolve()),
        name,
        size,
        leaf,
        torch.get_num_threads(),
        _process(),
        _here(),
        type(run),
    )


def _here() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _process() -> str:
    """What results depend on besides the recipe: the kernels and the versions of libraries."""
    return json.dumps({"kernels": kernels.mode(), **versions()}, sort_keys=True, default=str)


@lru_cache(maxsize=1)
def _opened(work: StageWork) -> Callable[[Sequence[Any]], Iterable[Any]]:
    """The function of a map, with everything that it needs. A worker has one stage open at a time."""
    import torch

    torch.set_num_threads(work.threads)
    if (here := _process()) != work.process:
        ours, theirs = json.loads(work.process), json.loads(here)
        other = ", ".join(
            f"{key} {theirs.get(key)} instead of {ours[key]}" for key in ours if ours[key] != theirs.get(key)
        )
        raise RunFailed(
            f"the worker on {socket.gethostname()} has {other}, and would compute other numbers\n"
            "help: install the same versions on all machines"
        )
    run = work.make(_recipe(work), Path(work.run), Reporter(Console(quiet=True), Console(quiet=True)))
    run.metrics = lambda stage: _NoMetrics()
    stage = run.recipe.stages[work.stage]
    run.stage_name = stage.name
    _engines.enter_context(using_engine(run, stage))
    run.make_room(stage)
    if work.leaf is not None:
        place, name = work.leaf
        spec = specs(stage.component.options, RewardSpec)[place]
        return partial(_scored_rows, run, Scorer(spec, run.reward_context(run.seed_of(stage)), name))
    step, author = made(stage.component, stage.name)
    with calling(author, "run", step):
        function = step.mapper(work.name, step_context(StepRows(run, stage, Path(work.folder))))

    def blamed(rows: Sequence[Any]) -> list[Any]:
        with calling(author, "run", step):
            return list(function(rows))

    return blamed


def _scored_rows(run: Any, leaf: Scorer, rows: Sequence[str]) -> list[list[float | None]]:
    """A reward's scores of groups as JSON: those of each."""
    groups = [group_from_json(row) for row in rows]
    column = iter(scored(run, leaf, groups))
    return [[next(column) for _ in group.responses] for group in groups]


def _recipe(work: StageWork) -> Recipe:
    """The run's recipe, as this process reads it."""
    files, without = work.plugins
    loaded = load_plugins(map(Path, files), without)
    requested = {Path(file).name for file in files}
    if broken := next((each for each in loaded.broken if each.distribution in requested), None):
        raise PluginError(str(broken))
    text = (Path(work.run) / RECIPE).read_text(encoding="utf-8")
    return build(parse_document(text, Path(work.recipe), (), []), loaded.registry)


class _NoMetrics:
    def write(self, **values: Any) -> None:
        """Write nothing."""


@lru_cache(maxsize=1)
def _end_with(stop: Path) -> None:
    """Stop this process's work once the run asks for it: requests that are under way are still stored then."""
    stopping._reasons.clear()

    def watch() -> None:
        while not stop.exists():
            time.sleep(LOOK)
        stopping.request_stop("the run is over")

    threading.Thread(target=watch, daemon=True).start()
