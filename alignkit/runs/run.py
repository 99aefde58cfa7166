"""A run: the recipe's stages in order, each reused, resumed or started, in one folder that a person
can read.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from alignkit.contract.step import Artifact
from alignkit.errors import (
    OutOfResource,
    PluginError,
    RemoteError,
    RunFailed,
    StageWaits,
    Stopped,
    memory_ran_out,
    message_of,
    no_disk,
    refuse,
)
from alignkit.evaluation import held_out
from alignkit.host.calls import call, create
from alignkit.host.plugins import plugins
from alignkit.io.atomic import make_folder, write_text
from alignkit.io.console import Reporter
from alignkit.io.digest import digest
from alignkit.io.results import RECIPE, damage_of, is_cell, json_lines, other_runs
from alignkit.io.text import duration, exists
from alignkit.recipe.schema import Recipe
from alignkit.recipe.yaml import without_keys
from alignkit.runs.services import Services, begin, locked, resume_command
from alignkit.runs.signals import stoppable
from alignkit.runs.stage import FIRST_ROWS, Problems, RunStage, StepStage, TrainingStage
from alignkit.training.collectives import ONE_PROCESS, Collectives

CLAIM = 1.0  # seconds between looks at a stop, while another cell has a stage


def run_recipe(
    recipe: Recipe,
    folder: Path,
    reporter: Reporter | None = None,
    collectives: Collectives = ONE_PROCESS,
) -> None:
    """Run a recipe in a folder. Raises an AlignkitError, whose `exit_code` becomes the process's.

    reporter: of a run that has begun (`begin`). collectives: of the processes that
    run it together, each with the same call. The first one writes and speaks.
    """
    reporter = reporter or begin(recipe, folder)
    with ExitStack() as stack:
        if collectives.process == 0:
            stack.enter_context(locked(folder))
            reporter.log.path = folder / "run.log"
        stack.enter_context(stoppable())
        run = Run(recipe, folder, reporter, collectives)
        error: BaseException | None = None
        try:
            run.execute()
        except BaseException as raised:
            error = raised  # also if a signal ends the next line, which may wait for others
            collectives.fail(raised)
            error = with_help(raised, run.stage_name)
            run.reporter.log.write(message_of(error))  # whoever called prints it
            raise error  # noqa: B904  (it may be the same one)
        finally:
            run.reporter.stop()
            try:
                run.event("run_finished", error=error)
            except PluginError as wrong:  # it must not hide how the run ended
                run.reporter.say(f"warning: {wrong}")
        took = duration(time.monotonic() - reporter.began)
        reporter.say(f"done in {took}; peak memory {run.peak_memory}; results: {folder}")
        try:
            run.should_stop()
        except Stopped as stopped:  # a signal came after the last stage
            raise with_help(stopped, "") from None


def with_help(error: BaseException, stage: str) -> BaseException:
    """The error that ends a run: of memory and disks in words, with notes on where it was and how
    it continues.
    """
    if found := no_disk(error):
        error = found
    elif memory_ran_out(error):
        ways = "reduce max_length or samples_per_prompt, or set model.activation_checkpointing=true"
        error = OutOfResource(f"out of memory: {ways} ({error})")
    # It was nobody's mistake
    if isinstance(error, KeyboardInterrupt | Stopped | RemoteError | OutOfResource):
        if stage:
            error.add_note(f"in stage '{stage}'")
        error.add_note(f"to resume: {resume_command()}")
    return error


class Run(Services):
    """One run of a recipe in a folder; event hooks receive it."""

    @cached_property
    def stages(self) -> dict[str, RunStage]:
        """The chosen ones and those that they need, by name, in order."""
        kinds = {"algorithm": TrainingStage, "step": StepStage}
        stages = self.recipe.stages
        needed = {*(self.recipe.chosen or stages)}
        for name in reversed(stages):
            if name in needed:
                needed.update(stages[name].upstream)
        return {
            name: kinds[stage.kind](self, stage) for name, stage in stages.items() if name in needed
        }

    def execute(self) -> None:
        """Run all stages that are not complete, then print their results."""
        self.collectives.on_main_process(self._begin)
        left: set[str] = set()  # stages that wait, or need one that does
        waits: list[StageWaits] = []
        for name, stage in self.stages.items():
            self.collectives.should_stop(self.should_stop)
            if not left.isdisjoint(stage.spec.upstream):
                left.add(name)
                continue
            stage.notify("stage_started")
            try:
                with self._claimed(stage):
                    reused = self._stage(stage)
            except StageWaits as error:
                left.add(name)
                waits.append(error)
                if self.is_main_process:
                    self.store.wait(name, error.missing, error.store)
                self.say(f"{name}: waits for {error.missing} label{'s' * (error.missing != 1)}")
                continue
            stage.notify("stage_finished", reused=reused)
            if reused:
                self.reused.append(name)
        self.stage_name = ""
        self.reporter.stop()
        if waits:
            first, text = waits[0], "\n".join(map(str, waits))
            raise StageWaits(text, missing=first.missing, store=first.store)
        self.collectives.on_main_process(self._show)

    def _begin(self) -> None:
        """Prepare the stages that are not complete, before the first of them runs."""
        self.event("run_started")
        make_folder(self.folder / "cache")
        incomplete = [
            name
            for name, stage in self.stages.items()
            if not self._reuse(name, stage.with_files(stage.key()))
        ]
        if missing := [
            name for name in incomplete if name not in (self.recipe.chosen or incomplete)
        ]:
            text = (
                f"--only needs results of {', '.join(missing)}, which are not complete with these "
                "settings"
            )
            refuse(text, f"--until {missing[-1]} makes them")
        write_text(self.folder / RECIPE, without_keys(self.recipe.resolved))
        self.prepare(incomplete)

    def _show(self) -> None:
        """Print the results. Raises RunFailed if one is no longer as its stage wrote it."""
        for name in self.stages:
            if damage := damage_of(self.folder / name):
                raise RunFailed(f"{damage}, while later stages ran; repeat the command")
        width = self.reporter.out.width
        for texts in plugins().ask("results", self.folder, self.records, width):
            for text in texts:
                self.reporter.result(text)

    def prepare(self, names: Iterable[str], rows: int | None = FIRST_ROWS) -> None:
        """Prepare stages before the first of them runs. Raises RecipeError with all their problems.

        If there are none, it raises DataError with all problems in their data. rows: see
        `RunStage.check_data`.
        """
        problems = Problems(self.recipe)
        for index, component in enumerate(self.recipe.trackers):
            try:
                call(create(component), "check")
            except RunFailed as error:
                problems.add([self.recipe.document.problem(("trackers", index), str(error))])
        stages = [self.stages[name] for name in names]
        for stage in stages:
            self.should_stop()
            self.stage_name = stage.name
            stage.check_plugins(problems)
        problems.end()
        for stage in stages:
            self.should_stop()
            self.stage_name = stage.name
            stage.check_data(problems, rows)
        problems.end_data()

    def _reuse(self, name: str, parts: Mapping[str, Any]) -> bool:
        """Whether a stage has a whole result for its key, of this run or of another one; its link
        then leads there.
        """
        self.hashes[name] = digest(parts)
        found = self.store.link(name, self.hashes[name], self.others, self.reporter.say)
        if found:
            self.ready.add(name)
        return found

    @property
    def records(self) -> list[dict[str, Any]]:
        """What is known of the stages' current results, in order."""
        return list(map(self.store.record, self.stages))

    @contextmanager
    def _claimed(self, stage: RunStage) -> Iterator[None]:
        """Hold a stage of a cell: another cell that needs the same waits, and reuses its result."""
        if not (self.is_main_process and is_cell(self.folder)):
            yield
            return
        key = digest(stage.with_files(stage.key()))
        lock = FileLock(self.folder.parent / f".{stage.name}-{key[:16]}.lock")
        while not lock.is_locked:
            with suppress(Timeout):
                lock.acquire(timeout=CLAIM)
            self.should_stop()
        with lock:
            self.others = other_runs(self.folder)
            yield

    def _stage(self, stage: RunStage) -> bool:
        """Run a stage unless it can be reused. Returns whether it was reused.

        All processes train together. Everything else is the first one's.
        """
        name = self.stage_name = stage.name
        first, trains = self.collectives.on_main_process, stage.spec.kind == "algorithm"
        started = first(lambda: self._start(stage))
        if started is None:
            return True
        parts, before = started
        if trains:  # with data, weights and code of each machine
            self.hashes |= parts["upstream"]
            self.collectives.compare(f"stage '{name}'", stage.key)
        began = time.monotonic()
        made: list[Artifact] = []
        with self.models_for(stage.spec):
            if before:
                stage.notify("stage_changed", record=before, parts=parts)
            if trains:
                self.collectives.sharing = True
                made.append(stage.run())
                # Not if it fails, because the others may be anywhere then
                self.collectives.sharing = False
            else:
                first(lambda: made.append(stage.run()))
        self.models.forget(name)
        seconds = time.monotonic() - began
        record = {**stage.record(seconds, made[0], parts), "memory": self._peak()}
        first(lambda: self._finish(stage, record))
        return False

    def _start(self, stage: RunStage) -> tuple[dict[str, Any], Mapping[str, Any]] | None:
        """Begin a stage, or continue it: what its key is made of, and the record of another key
        that was there.

        None if it can be reused.
        """
        name, before = stage.name, self.store.record(stage.name)
        # Again, because files may have changed while earlier stages ran
        parts = stage.with_files(stage.key())
        if self._reuse(name, parts):
            self.reporter.stop(f"{name}: unchanged, reused")
            record = self.store.record(name)
            for fact, here in stage.machine().items():
                if (made := record.get(fact)) not in (None, here):
                    self.say(f"{name}: warning: made in {made}, and its numbers differ in {here}")
            return None
        key, folder = self.hashes[name], self.folder / name
        if before.get("hash") == key:
            before = {}
        if exists(folder) and (damage := damage_of(folder)):
            self.reporter.say(f"{name}: {damage}; the stage runs again")
        self.store.begin(name, key, parts)
        plugin = stage.spec.component.name
        self.reporter.stage(name, [*self.stages].index(name) + 1, len(self.stages), plugin)
        return parts, before

    def _finish(self, stage: RunStage, record: Mapping[str, Any]) -> None:
        """Make a stage's work its result."""
        name, began = stage.name, self.hashes[stage.name]
        parts = stage.with_files(record["depends_on"], made=True)
        self.hashes[name] = digest(parts)
        facts = {"hash": self.hashes[name], **record, **stage.machine(), "depends_on": parts}
        self.store.finish(name, facts, began)
        self.ready.add(name)
        summary, rows = record["summary"], json_lines(self.folder / name / "metrics.jsonl")
        counts = [
            f"{key} {value}"
            for key, value in summary.items()
            if value and isinstance(value, int | str)
        ]
        outcome = ", ".join([*held_out.learned(summary, rows), *counts])
        self.reporter.stop(
            f"{name}: done in {duration(record['seconds'])}: {outcome}".removesuffix(": ")
        )
        if doubt := held_out.doubt(summary, rows):
            self.say(f"{name}: warning: {doubt}")

    @property
    def peak_memory(self) -> str:
        """The most memory that this process has used, in words."""
        from alignkit.kernels import memory  # imports torch

        return memory.peak_text(self._device)

    def _peak(self) -> int:
        """The same in bytes, of a GPU if there is one."""
        from alignkit.kernels import memory  # imports torch

        return memory.peak(self._device)

    @property
    def _device(self) -> Any:
        """That of the models, if there are any."""
        return next((one.model.device for one in self.models.opened.values()), None)
