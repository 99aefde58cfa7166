"""A run: the recipe's stages in order, each reused, resumed or started, in one folder that a person can read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from alignkit import stopping
from alignkit.calls import create
from alignkit.data.group import Group, write_groups
from alignkit.data.sources import DataSpec, Loaded
from alignkit.errors import OutOfResource, PluginError, RemoteError, RunFailed, memory_ran_out, message_of, no_disk
from alignkit.io.atomic import make_folder, write_text
from alignkit.io.console import Metrics, Reporter
from alignkit.io.credentials import redacted
from alignkit.io.digest import digest
from alignkit.io.results import RECIPE, Results, folders_of, other_runs
from alignkit.io.text import duration
from alignkit.kernels import memory
from alignkit.launcher import World, launcher
from alignkit.models.memory import Passes
from alignkit.models.models import LoadedBase, Models
from alignkit.models.shared_model import SharedModel
from alignkit.plugins import plugins
from alignkit.recipe.schema import BASE, Recipe, Stage, specs
from alignkit.recipe.yaml import dump
from alignkit.reward import Context
from alignkit.runs.bases import RunBases
from alignkit.runs.data import RunData, skipped_rows
from alignkit.runs.engines import meet_engines, using_engine
from alignkit.runs.fingerprint import result_hashes, stage_parts
from alignkit.runs.folder import begin, locked, resume_command
from alignkit.runs.prepare import Preparation
from alignkit.runs.stage_record import facts, source_records, stage_record, trains_policy, write_report
from alignkit.runs.steps import step_context
from alignkit.step import Artifact, run_step
from alignkit.stopping import StageWaits, Stopped, stoppable
from alignkit.training.collectives import ONE_PROCESS, Collectives
from alignkit.training.context import StageContext
from alignkit.training.train import run_training


class Team:
    """The processes of a run as its stages see them: here the only one. collectives: what the processes exchange."""

    world = World()
    collectives: Collectives = ONE_PROCESS

    def should_stop(self, check: Callable[[], None]) -> None:
        """Raise Stopped in every process if `check` does in one."""
        check()

    @contextmanager
    def training(self, stage: str, parts: Mapping[str, Any]) -> Iterator[None]:
        """Let every process train a stage. parts: what its result depends on, which must be alike.

        Raises RunFailed if it is not.
        """
        yield

    def passes(self, base: str, service: LoadedBase) -> Passes:
        """How passes through a base model begin and end. service: of its roles."""
        return service.model.passes

    def ends(self, error: BaseException | None) -> None:
        """Let the others end, before reports are written."""


ALONE = Team()


def run_recipe(recipe: Recipe, out: Path | None = None, reporter: Reporter | None = None, team: Team = ALONE) -> None:
    """Run a recipe in `out` (default `runs/NAME`). Raises an AlignkitError, whose `exit_code` becomes the process's.

    reporter: of a run that has begun (`alignkit.runs.folder`). team: the processes that run it together.
    """
    folder, reporter = (out or Path("runs") / recipe.name, reporter) if reporter else begin(recipe, out)
    with locked(folder), stoppable():
        reporter.log.open(folder / "run.log")
        run = Run(recipe, folder, reporter, team=team)
        error: BaseException | None = None
        try:
            run.execute()
        except BaseException as raised:
            error = raised
            failure = with_help(raised, run.stage_name)
            run.reporter.log.write(message_of(failure))  # whoever called prints it
            if failure is not raised:
                raise failure from raised
            raise
        finally:
            team.ends(error)
            run.reporter.stop()
            try:
                plugins().notify("run_finished", run=run, error=error)
            except PluginError as wrong:  # it must not hide how the run ended
                run.reporter.say(f"warning: {wrong}")
        run.say_end()
        try:
            run.should_stop()  # a signal came after the last stage
        except Stopped as stopped:
            raise with_help(stopped, "") from None


def with_help(error: BaseException, stage: str) -> BaseException:
    """The error that ends a run: of memory and disks in words, with notes on where it was and how it continues."""
    if found := no_disk(error):
        error = found
    elif memory_ran_out(error):
        ways = "reduce max_length or samples_per_prompt, or set model.activation_checkpointing=true"
        error = OutOfResource(f"out of memory: {ways} ({error})")
    if isinstance(error, KeyboardInterrupt | Stopped | RemoteError | OutOfResource):  # it was nobody's mistake
        if stage:
            error.add_note(f"in stage '{stage}'")
        error.add_note(f"to resume: {resume_command()}")
    return error


class Run:
    """One run of a recipe in a folder; event hooks receive it."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        reporter: Reporter | None = None,
        team: Team = ALONE,
    ):
        self.recipe, self.folder, self.team = recipe, folder, team
        self.reporter = reporter or Reporter()
        self.store = Results(folder, recipe.stages)
        self.others = other_runs(folder, recipe.name)  # whose results may be reused
        self.bases = RunBases(recipe, self.reporter)
        self.models = Models(self.bases.base_of, self._open)
        self.hashes: dict[str, str] = {}
        self._data = RunData(self.store.data, recipe.seed)
        self._times: list[str] = []  # of the stages
        self._records: list[Mapping[str, Any]] = []  # whose reports are printed at the end of the run
        self.stage_name = ""  # of the current stage
        self.reused: list[str] = []  # stages of this start
        self._bad_rows: dict[str, None] = {}  # an ordered set: data may be read twice
        self._described: list[DataSpec] = []  # by the current stage
        self._sources: list[dict[str, Any]] = []  # that the current stage has read
        self.attach_engine: Callable[[LoadedBase], None] = lambda service: None  # the current stage's

    # Stopping

    def request_stop(self, reason: str) -> None:
        """Stop at the next opportunity; the run can be resumed."""
        stopping.request_stop(reason)

    def should_stop(self) -> None:
        """Raise Stopped if a stop was requested."""
        stopping.should_stop()

    # Stages

    def execute(self) -> None:
        """Run all stages that are not complete, then print their results."""
        plugins().notify("run_started", run=self)
        write_text(self.folder / RECIPE, redacted(dump(self.recipe.resolved)))
        if self.team.world.processes > 1:
            self.cache()  # before the others look for it
        self.should_stop()
        self._prepare()
        waiting = Waiting()
        for stage in self.recipe.stages.values():
            self.should_stop()
            if waiting.blocks(stage):
                continue
            started = time.monotonic()
            self.notify(stage.name)("stage_started")
            with waiting.until_labeled(self.store, self.reporter.say):
                reused = self._stage(stage)
            if stage.name in waiting.blocked:
                continue
            self.notify(stage.name)("stage_finished", reused=reused)
            self.reused += [stage.name] if reused else []
            self._times.append(f"{stage.name} {'reused' if reused else duration(time.monotonic() - started)}")
        self.stage_name = ""
        self.reporter.stop()
        waiting.end(self.reporter.say)
        self._check_results()
        self.store.join_metrics(stage.name)
        for texts in plugins().notify("results_shown", run=self, records=self._records, width=self.reporter.width):
            for text in texts:
                self.reporter.result(text)

    def _check_results(self) -> None:
        """Raise RunFailed if a result is no longer there, or has changed, while later stages ran."""
        gone = [name for name in self.recipe.stages if not self._bring(name)]
        if gone:
            raise RunFailed(f"the results of {', '.join(gone)} changed while later stages ran; repeat the command")

    def say_end(self) -> None:
        """The last lines of a run that is complete: how long the command took, and what to do next."""
        took = f"done in {duration(time.monotonic() - self.reporter.began)} ({', '.join(self._times)})"
        self.reporter.say(f"{took}; peak memory {self.peak_memory}")
        self.reporter.say(f"results: {self.folder}")
        policies = [stage.name for stage in self.recipe.stages.values() if trains_policy(stage)]
        if policies and not any(str(record.get("text") or "").startswith("next: ") for record in self._records):
            self.reporter.say(f"next: alignkit chat {self.folder / policies[-1]}")

    @property
    def peak_memory(self) -> str:
        """The most memory that this process has used, in words."""
        return memory.peak_text(next((one.model.device for one in self.models.bases.values()), None))

    def _prepare(self) -> None:
        """Prepare every stage that is not complete, before the first of them runs."""
        stages = self._incomplete()
        encoder = lambda base: self.bases[base].encoder  # noqa: E731
        Preparation(self.recipe, stages, self.bases, self._read, encoder, self.reporter.say).prepare()
        if stages and self.team.world.processes == 1:
            meet_engines(self, stages)

    def _incomplete(self) -> list[Stage]:
        """The stages that will not be reused."""
        stages = list(self.recipe.stages.values())
        others = [(run, stage.name) for run in self.others for stage in stages]
        if not any(self.store.has_any(stage.name) for stage in stages) and not any(folders_of(*one) for one in others):
            return stages  # no key is needed, so no base model is downloaded yet
        for stage in stages:
            self.hashes[stage.name] = self.hash_of(stage)
        return [stage for stage in stages if not self._bring(stage.name)]

    def _bring(self, name: str) -> bool:
        """Whether a stage has the result for its key, of this run or of another one."""
        return self.store.bring(name, self.hashes[name], self.others, self.reporter.say)

    def _stage(self, stage: Stage) -> bool:
        """Run a stage unless it can be reused. Returns whether it was reused."""
        name = stage.name
        self.stage_name, self._bad_rows, self._described, self._sources = name, {}, [], []
        parts = self.parts_of(stage)  # again, because files may have changed while earlier stages ran
        key = self.hashes[name] = digest(parts)
        before = self.store.record(name)
        if self._bring(name):
            self.reporter.stage_ends(f"{name}: unchanged, reused")
            self._records.append(self.store.record(name))
            return True
        if before.get("hash") in (None, key):
            before = {}
        else:
            why = "".join(self.notify(name)("stage_changed", record=before, parts=parts))
            self.reporter.say(f"{name}: changed since the last run{why}, starting over")
        earlier = float(self.store.begun(name, key).get("seconds") or 0.0)  # of starts that were interrupted
        folder = self.store.begin(name, key, parts, earlier)
        self.reporter.stage(name, [*self.recipe.stages].index(name) + 1, len(self.recipe.stages), stage.component.name)
        began = time.monotonic()
        try:
            with using_engine(self, stage):
                self.make_room(stage)
                if before:
                    self.notify(name)("stage_begins_again", record=before)
                summary, artifact = self._work(stage, folder, parts)
        except BaseException:
            with suppress(OSError):  # a full disk must not hide what went wrong
                self.store.begin(name, key, parts, earlier + time.monotonic() - began)
            raise
        summary |= {"bad_rows": list(self._bad_rows)} if self._bad_rows else {}
        self.models.forget(name)
        seconds = time.monotonic() - began
        record = {"hash": key, **stage_record(stage, earlier + seconds, summary, artifact, parts, self._sources)}
        self.store.finish(name, record)
        self._records.append(record)
        self.reporter.stage_ends(f"{name}: done in {duration(seconds)}{facts(summary)}")
        return False

    def _work(self, stage: Stage, folder: Path, parts: Mapping[str, Any]) -> tuple[dict[str, Any], Artifact]:
        """Do the stage's work; returns its summary and artifact."""
        if stage.kind == "algorithm":
            with self.team.training(stage.name, parts):
                return run_training(self.stage_context(stage, folder)), Artifact()
        artifact = self._step(stage, folder)
        if artifact.groups is not None:
            write_groups(self.store.data(stage.name), artifact.groups)
        if artifact.report is not None:
            write_report(folder, artifact.report)
        return dict(artifact.summary or {}), artifact

    def _step(self, stage: Stage, folder: Path) -> Artifact:
        """Run a step's plugin."""
        step = create(stage.component, stage.name)
        return run_step(step, step_context(self, stage, folder, self.metrics(stage)))

    # Contexts

    def stage_context(self, stage: Stage, folder: Path) -> StageContext:
        """Return the context of a training stage."""
        seed = self.recipe.seed
        return StageContext(
            stage=stage,
            models=self.models.of(stage.base),
            folder=folder,
            metrics=lambda size: self.metrics(stage, size),
            seed=seed,
            load=self.load,
            reward_context=lambda: self.reward_context(seed),
            folder_of=self.store.path,
            base_of=self.bases.base_of,
            models_of=lambda reference: self.models.of(self.bases.base_of(reference) or stage.base),
            bases=lambda: {base: self.models.of(base) for base in self.bases.needed(stage)},
            reporter=self.reporter,
            notify=self.notify(stage.name),
            should_stop=lambda: self.team.should_stop(self.should_stop),
            collectives=self.team.collectives,
        )

    def reward_context(self, seed: int) -> Context:
        """Return the context of rewards and judges."""
        return Context(
            self.models,
            self.cache(),
            self.recipe.folder,
            seed,
            lambda spec: self.load(spec).groups,
            stage=self.stage_name,
            progress=self.reporter.progress,
        )

    def cache(self) -> Path:
        """The run's folder for what rewards, judges and engines keep."""
        make_folder(cache := self.folder / "cache")
        return cache

    def notify(self, stage: str) -> Callable[..., Any]:
        """The event hooks, with the run and the stage filled in; each returns what its observers do."""
        return partial(plugins().notify, run=self, stage=stage)

    # Data

    def _read(self, stage: Stage, spec: DataSpec) -> Loaded:
        """Read a data entry before any stage runs."""
        self.should_stop()
        self.stage_name = stage.name
        entries = specs([stage.settings, stage.component.options], DataSpec)
        whole = any(spec is entry for entry in entries)  # a stage never asks for a part of an entry
        return (self._data.preload if whole else self._data.read)(spec)

    def load(self, spec: DataSpec, seed: int | None = None) -> Loaded:
        """Read a data entry for the current stage; report what was understood, and the bad rows that it skips.

        seed: of the validation split; None: the recipe's, so that all stages split a file in the same way.
        """
        loaded = self._data.load(spec, seed)
        if spec not in self._described:
            self._described.append(spec)
            told = self.notify(self.stage_name)("data_read", loaded=loaded)
            self._sources += source_records(spec, loaded, told or ())
        if loaded.skipped:
            self._bad_rows |= dict.fromkeys(map(str, loaded.skipped))
            self.reporter.say(skipped_rows(loaded, self.store.path(self.stage_name) / "stage.json"))
        return loaded

    def read(self, spec: DataSpec) -> list[Group]:
        """The groups of a data entry, which may be of another stage or run than the current one."""
        return self._data.read(spec).groups

    def metrics(self, stage: Stage, size: int = 0) -> Metrics:
        """A stage's metrics.jsonl. size: bytes at its last checkpoint."""
        metrics = self.store.metrics(stage.name, size)
        self.notify(stage.name)("metrics_opened", metrics=metrics)
        return metrics

    # Models

    def engine_of(self, stage: Stage, folder: Path) -> Any:
        """What asks a stage's engine. folder: see `Launcher.engine`."""
        seed, say = self.recipe.seed, self.reporter.say
        return launcher().engine(stage.engine, folder, stage=stage.name, seed=seed, say=say)

    def _open(self, base: str) -> LoadedBase:
        """Load a base model. Raises RecipeError if it does not fit in memory next to the stage's others."""
        self.bases.check_memory(stage for stage in self.recipe.stages.values() if stage.name == self.stage_name)
        service = self.bases[base].load(self.artifact, self.should_stop)
        service.model.passes = self.team.passes(base, service)
        self.attach_engine(service)
        return service

    def make_room(self, stage: Stage) -> None:
        """Begin a stage: free the base models that no later stage needs, or all others if there is no room for them."""
        stages = list(self.recipe.stages.values())
        needed = self.bases.needed(stage)
        later = {base for after in stages[stages.index(stage) :] for base in self.bases.needed(after)}
        fits = self.bases.fit({*needed, *(later & self.models.bases.keys())})
        self.models.enter(stage.name, needed, later if fits else ())
        if stage.kind == "algorithm":  # now: a model that cannot be loaded should not cost an iteration
            for base in needed:
                self.models.of(base)

    @property
    def model(self) -> SharedModel:
        """The recipe's `model` and its roles."""
        return self.models.of(BASE).model

    def artifact(self, reference: str) -> Path:
        """The folder of a saved role: a stage's result, or the user's own. Raises RunFailed if it does not exist."""
        if reference.partition("@")[0] in self.recipe.stages:
            return self.store.artifact(reference)
        folder = self.recipe.folder / reference
        if not folder.is_dir():
            raise RunFailed(f"'{reference}' is neither a stage nor a folder: there is no {folder}")
        return folder

    def hash_of(self, stage: Stage) -> str:
        """The hash of everything the stage's result depends on; the hashes of earlier stages are already known."""
        return digest(self.parts_of(stage))

    def parts_of(self, stage: Stage) -> dict[str, Any]:
        """Everything the stage's result depends on, as plain data."""
        upstream = {name: self.hashes[name] for name in stage.upstream}
        upstream |= result_hashes(stage, self.recipe, self.folder)
        own, *more = self.bases.needed(stage)
        others = {name: self.bases[name].digest for name in more}
        return stage_parts(stage, self.recipe, self.bases[own].digest, upstream, self._data, own, others)


@dataclass
class Waiting:
    """The stages of a run that wait, by name, and all that cannot run before they are done, in order."""

    errors: dict[str, StageWaits] = field(default_factory=dict)
    blocked: dict[str, None] = field(default_factory=dict)

    @contextmanager
    def until_labeled(self, store: Results, say: Callable[[str], None]) -> Iterator[None]:
        """The block runs a stage, which may wait."""
        try:
            yield
        except StageWaits as error:
            self.errors[error.stage] = error
            self.blocked[error.stage] = None
            store.wait(error.stage, error.missing, error.store)
            say(f"{error.stage}: waits for {error.missing} label{'s' * (error.missing != 1)}")

    def blocks(self, stage: Stage) -> bool:
        """Whether a stage needs one that waits."""
        if found := any(name in self.blocked for name in stage.upstream):
            self.blocked[stage.name] = None
        return found

    def end(self, say: Callable[[str], None]) -> None:
        """Raise StageWaits if a stage waits."""
        errors, later = list(self.errors.values()), [name for name in self.blocked if name not in self.errors]
        if later:
            say(f"not yet, because they need these labels: {', '.join(later)}")
        if len(errors) == 1:
            raise errors[0]
        if errors:
            missing = sum(error.missing for error in errors)
            names = ", ".join(self.errors)
            raise StageWaits("\n".join(map(str, errors)), missing=missing, stage=names, store=errors[0].store)
