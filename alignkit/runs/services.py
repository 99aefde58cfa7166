"""What the stages of a run share: the recipe, its folder and results, models, data, console,
and processes.

Nothing imports torch before a model is needed.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

import alignkit
from alignkit.errors import OutOfResource, RunFailed, refuse
from alignkit.host.plugins import launcher, plugins
from alignkit.io.atomic import LOCK, make_folder, remove_leftovers
from alignkit.io.console import Reporter
from alignkit.io.digest import digest
from alignkit.io.results import CELLS, FACTS, PAGE, RECIPE, Results, other_runs
from alignkit.io.text import Say, exists, redacted
from alignkit.recipe.schema import BASE, Recipe, Stage
from alignkit.runs import signals
from alignkit.runs.fingerprint import RunData
from alignkit.runs.model_source import ModelSource
from alignkit.training.collectives import ONE_PROCESS, Collectives

if TYPE_CHECKING:
    from alignkit.models.models import LoadedModel, Models


class Services:
    """What the stages of a run share.

    say: prints a line that the user must know. model_source: returns the source of BASE or of a
    whole model, made once. hashes: of the keys of stages. ready: stages whose results are those for
    their keys. others: runs whose results may be reused.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        reporter: Reporter | None = None,
        collectives: Collectives = ONE_PROCESS,
        download: bool = True,
    ):
        """collectives: of the processes that run the recipe together; the first of them writes, and
        calls event hooks.

        download: whether what is not on this machine yet may be fetched or made.
        """
        self.recipe, self.folder, self.collectives, self.download = (
            recipe,
            folder,
            collectives,
            download,
        )
        self.is_main_process = collectives.process == 0
        self.reporter = reporter or Reporter()
        self.say: Say = self.reporter.say
        self.store = Results(folder)
        self.others = other_runs(folder)
        self.model_source = cache(
            partial(ModelSource, recipe=recipe, reporter=self.reporter, download=download)
        )
        self.data = RunData(self.store.data, recipe)
        self.hashes: dict[str, str] = {}
        self.ready: set[str] = set()
        self.stage_name = ""  # the current stage's
        self.reused: list[str] = []  # stages of this start
        # The current stage, if an engine samples for it, and what closes one for each open model
        self._sampled: Stage | None = None
        self._engines = ExitStack()

    request_stop, should_stop = (
        staticmethod(signals.request_stop),
        staticmethod(signals.should_stop),
    )

    def event(self, hook: str, **values: Any) -> None:
        """Call an event hook."""
        if self.is_main_process:
            plugins().notify(hook, run=self, **values)

    def executor(self, stage: str, folder: Path, name: str) -> Any:
        """What computes a map of a step elsewhere; None: nothing."""
        return next(plugins().ask("executor", self, stage, folder, name), None)

    # Models

    @cached_property
    def models(self) -> Models:
        """The policies and reward models of the run."""
        from alignkit.models.models import Models

        return Models(self._open)

    def _open(self, name: str) -> LoadedModel:
        loaded = self.model_source(name).load(self.artifact, self.should_stop)
        loaded.model.passes = self.collectives.passes_of(name, loaded)
        self._start_engine(loaded)
        return loaded

    @contextmanager
    def models_for(self, stage: Stage) -> Iterator[None]:
        """Free whole models that a stage does not use, and sample with its engine until it ends."""
        self.models.enter(stage.whole_models)
        if stage.engine is not None:
            local = "log-probabilities, scores of reward models, verdicts of one token"
            self.reporter.say(f"samples: {stage.engine.name}; local: {local}")
            self._sampled = stage
        try:
            # All engines are closed, also if closing one of them is interrupted.
            with ExitStack() as self._engines:
                for loaded in self.models.opened.values():
                    self._start_engine(loaded)
                # Now: a model that cannot be loaded should not cost an iteration
                if stage.kind == "algorithm":
                    for name in (BASE, *stage.whole_models):
                        self.models.of(name)
                yield
        finally:
            self._sampled = None

    def _start_engine(self, loaded: LoadedModel) -> None:
        """Let the current stage's engine sample from a model, if the recipe names one."""
        if self._sampled is None:
            return
        loaded.engine = launcher().engine(
            self._sampled.engine,
            self.folder / "cache" / f"engine-{digest(loaded.name)[:8]}",
            stage=self._sampled.name,
            seed=self.recipe.seed,
            say=self.reporter.say,
        )
        self._engines.callback(loaded.close_engine)

    def artifact(self, reference: str) -> Path:
        """The folder of a saved role: a stage's result, or the user's own. Raises RunFailed if it
        does not exist.
        """
        if reference.partition("@")[0] in self.recipe.stages:
            return self.store.artifact(reference)
        folder = self.recipe.folder / reference
        if not folder.is_dir():
            raise RunFailed(f"'{reference}' is neither a stage nor a folder: there is no {folder}")
        return folder


CHUNK = 16  # rows that the function of a map sees together


def resumable_map(
    path: Path,
    rows: Sequence[Any],
    compute: Callable[[Iterable[Sequence[Any]]], Iterator[Iterable[Any]]],
    should_stop: Callable[[], None] = lambda: None,
    done: Callable[[int], None] = lambda rows: None,
) -> list[Any]:
    """A function's results over rows, computed in chunks and stored in `path` by the place and the
    content of each.

    Results must be JSON, one per row. Raises ValueError for another number of them. compute:
    computes the results of chunks, in order, as `partial(map, function)` does here. should_stop:
    called before each chunk; may raise. done: is given the number of rows so far.
    """
    chunks = {
        digest([at, rows[at : at + CHUNK]]): rows[at : at + CHUNK]
        for at in range(0, len(rows), CHUNK)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    stored: dict[str, list[Any]] = {}
    mapped: list[Any] = []
    with path.open("a+", encoding="utf-8", errors="replace") as file:
        file.seek(0)
        for line in file:
            with suppress(ValueError, TypeError):  # what a killed process wrote in part
                key, results, check = json.loads(line)
                if check == digest([key, results]):
                    stored[key] = results
        missing = [chunk for key, chunk in chunks.items() if key not in stored]
        computed = iter(compute(missing))
        for key, chunk in chunks.items():
            should_stop()
            if key not in stored:
                # So that it equals a stored one
                results = json.loads(json.dumps(list(next(computed))))
                if len(results) != len(chunk):
                    text = (
                        f"the function must return a result per row: {len(chunk)} rows, "
                        f"{len(results)} results"
                    )
                    raise ValueError(text)
                stored[key] = results
                file.write("\n" + json.dumps([key, results, digest([key, results])]))
                file.flush()
            mapped += stored[key]
            done(len(mapped))
        os.fsync(file.fileno())  # a stage's record, which comes next, says what is in it
    return mapped


def begin(recipe: Recipe, folder: Path) -> Reporter:
    """Say what will run, and where. Returns the run's reporter.

    Raises RecipeError if the run would replace what is in its folder and is no run's.
    """
    count = len(recipe.chosen or recipe.stages)
    # A stage looks at its folder itself
    taken = [name for name in (PAGE, FACTS) if exists(folder / name)]
    if taken and not exists(folder / RECIPE) and not exists(folder / CELLS):
        text = (
            f"--out {folder} is not the folder of a run, and a run would replace {', '.join(taken)}"
        )
        refuse(text, "choose another folder, such as --out runs/NAME")
    reporter = Reporter()
    reporter.say(
        f"alignkit {alignkit.__version__}: {recipe.name}, {count} stage{'s' * (count > 1)}, "
        f"{folder}"
    )
    return reporter


def folder_of(recipe: Recipe, out: Path | None) -> Path:
    """Where a recipe runs: `out`, or `runs/NAME`."""
    return out or Path("runs") / recipe.name


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the run's folder, hold its lock, so that two runs never share it, and clear what a
    killed run left.
    """
    try:
        make_folder(folder)
        lock = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout:
        raise RunFailed(
            f"another run is using {folder}; choose another folder with --out"
        ) from None
    except (OSError, ValueError) as error:
        raise OutOfResource(
            f"cannot write {folder}: {error}; choose another folder with --out"
        ) from None
    with lock:
        remove_leftovers(folder)
        yield


def resume_command() -> str:
    """The command that resumes this run: the one that started it."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    if words[0] in ("__main__.py", "-m"):
        words[:1] = ["python", "-m", "alignkit"]
    return redacted(shlex.join(words))
