"""A recipe run by several processes, each of which was started with the same command.

Process 0 finds out which stages are complete, runs steps, asks servers, and writes. In a training stage every process
does the same, and what takes long is dealt to them. If one dies, whoever started them ends the others.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from alignkit.algorithm import ExternalTrainer
from alignkit.data.sources import DataSpec
from alignkit.errors import Problem, RecipeError, RunFailed
from alignkit.io.console import Metrics, Reporter
from alignkit.io.digest import digest, plugin_digests, versions
from alignkit.launcher import World
from alignkit.models.memory import Passes
from alignkit.models.models import LoadedBase
from alignkit.recipe.mistakes import path_text
from alignkit.recipe.schema import BASE, Recipe, Stage, base_keys, specs
from alignkit.runs.data import file_facts
from alignkit.runs.run import Run, run_recipe
from alignkit.runs.services import Team
from alignkit.runs.start import NOT_BY_ACCELERATE
from alignkit.stopping import Stopped, stoppable
from alignkit_distributed import sharded
from alignkit_distributed.collectives import ProcessCollectives
from alignkit_distributed.sharded_forward import LockstepCollectives

LONGEST = timedelta(hours=6)  # that a process computes while the others wait for it


def run_together(recipe: Recipe, folder: Path, reporter: Reporter, world: World) -> None:
    """Run a recipe as one of several processes. Raises what ends the run, in every process."""
    check_stages(recipe)
    if world.shard:
        check_bases(recipe)
    team = Processes(world, {recipe.model.device, *(spec.device for spec in recipe.bases.values())})
    team.compare("the run", facts_of(recipe, folder, world))
    if world.leads:
        run_recipe(recipe, folder, reporter, team)
    else:
        run = FollowingRun(recipe, folder, Reporter(Console(quiet=True), Console(quiet=True)), team=team)
        with stoppable():
            run.execute()
    team.part()


def check_stages(recipe: Recipe) -> None:
    """Raise RecipeError if a stage cannot be trained by several processes."""
    problems = []
    for stage in recipe.stages.values():
        name = stage.component.name
        if stage.kind == "algorithm" and issubclass(stage.component.registration.implementation, ExternalTrainer):
            text = f"stage '{stage.name}': {name} trains by itself, and in one process"
            help = "start the run with 'alignkit run RECIPE'"
            problems.append(recipe.problem(("stages", stage.name), text, help=help))
    if problems:
        raise RecipeError(problems)


def check_bases(recipe: Recipe) -> None:
    """Raise RecipeError if a base model cannot be cut into parts, or a stage cannot train the parts."""
    problems = []
    help = "start the run without --use_fsdp"
    for stage in recipe.stages.values():
        settings = stage.settings
        if settings is None or recipe.base(stage.base).lora is not None:
            continue
        name = getattr(settings.optimizer, "name", settings.optimizer)
        if name != "adamw":
            text = f"stage '{stage.name}': '{name}' cannot train weights that are cut into parts; 'adamw' can"
            problems.append(recipe.problem(("stages", stage.name, "optimizer"), text, help=help))
        if stage.engine is not None:
            text = f"stage '{stage.name}': the engine '{stage.engine.name}' needs all weights in process 0"
            problems.append(recipe.problem(("stages", stage.name), text, help=help))
    for name in (BASE, *recipe.bases):
        spec, keys = recipe.base(name), base_keys(name)
        if spec.lora is None and not sharded.can_learn():
            text = f"{path_text(keys)}: this version of torch cannot cut weights that learn, as 'lora: none' asks for"
            problems.append(recipe.problem((*keys, "lora"), text, help=help))
        if spec.quantization != "none":
            text = f"{path_text(keys)}: a quantized base model cannot be cut into parts"
            problems.append(recipe.problem((*keys, "quantization"), text, help=help))
    if problems:
        raise RecipeError(problems)


def facts_of(recipe: Recipe, folder: Path, world: World) -> dict[str, Any]:
    """What must be alike in all processes before the first of them writes anything."""
    parts = [[stage.settings, stage.component.options] for stage in recipe.stages.values()]
    registrations = [stage.component.registration for stage in recipe.stages.values()]
    facts: dict[str, Any] = {"python": sys.version.split()[0], **versions(("accelerate",)), "recipe": recipe.resolved}
    facts |= {"folder": str(folder.resolve()), "--use_fsdp": world.shard}
    facts |= {name: digest for spec in specs(parts, DataSpec) for name, digest in file_facts(spec).items()}
    facts |= {f"plugin {entry.name}": plugin_digests(entry.source_path) for entry in registrations}
    return facts


class Processes(Team):
    """One of several processes."""

    def __init__(self, world: World, devices: set[str]):
        """Wait for all processes of the run. devices: of its base models, as the recipe names them.

        Raises RecipeError if the devices do not suit several processes, and RunFailed if the processes do not meet.
        """
        from accelerate import PartialState

        if world.shard:
            os.environ |= NOT_BY_ACCELERATE
        on_cpu = devices == {"cpu"} or not torch.cuda.is_available()
        _check_devices(devices, on_cpu)
        try:
            state = PartialState(cpu=on_cpu, timeout=LONGEST)
        except (RuntimeError, ValueError, OSError) as error:
            raise RunFailed(f"process {world.process} did not reach the others: {error}") from None
        if state.num_processes != world.processes:  # it was made before, by something that knew of one process
            text = f"accelerate knows {state.num_processes} processes, but the launcher started {world.processes}"
            raise RunFailed(text)
        self.world, self.sharing = world, False  # whether all processes compute together
        self._state = state
        self._first = ProcessCollectives(world.process, world.processes, state.device)
        kind = LockstepCollectives if world.shard else ProcessCollectives
        self.collectives: ProcessCollectives = kind(world.process, world.processes, state.device)

    def compare(self, what: str, facts: Mapping[str, Any]) -> None:
        """Raise RunFailed in every process if facts are not alike in all of them."""
        own = {name: digest(json.loads(json.dumps(value, default=str))) for name, value in facts.items()}
        first, *others = self._first.gather(own)
        for process, theirs in enumerate(others, 1):
            if differ := sorted(name for name in first.keys() | theirs.keys() if first.get(name) != theirs.get(name)):
                raise RunFailed(
                    f"{what} is not the same in process 0 and in process {process}: {', '.join(differ)}\n"
                    "help: let every machine have the same files, the same packages and the same command"
                )

    def should_stop(self, check: Callable[[], None]) -> None:
        ends: list[BaseException] = []
        try:
            check()
        except Stopped as stopped:
            ends.append(stopped)
        self.collectives.together(ends)

    @contextmanager
    def training(self, stage: str, parts: Mapping[str, Any]) -> Iterator[None]:
        if self.world.leads:
            self._first.gather((stage, parts["upstream"]))
        self.sharing = True
        self.compare(f"stage '{stage}'", parts)
        yield
        self.sharing = False  # not if it fails, because the others may be anywhere then

    def next_stage(self) -> tuple[str, dict[str, str]] | None:
        """The next stage that process 0 trains, and the hashes of the stages before it; None at the end of the run."""
        return self._first.gather(None)[0]

    def ends(self, error: BaseException | None) -> None:
        if self.world.leads and not self.sharing:
            self._first.gather(None)

    def part(self) -> None:
        """Close the connections at the end of a run. Threads that still use them would abort the process."""
        self._state.destroy_process_group()

    def passes(self, base: str, service: LoadedBase) -> Passes:
        return self.collectives.passes_of(base, service, lambda: self.sharing)


def _check_devices(devices: set[str], on_cpu: bool) -> None:
    if named := sorted(device for device in devices if ":" in device):
        text = f"'device: {named[0]}' is one device, but each process needs its own"
        raise RecipeError([Problem(text, help="leave 'device' out: each process takes a GPU of its own")])
    local, count = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if not on_cpu and local > count:
        text = f"{local} processes need {local} GPUs, but this machine has {count}"
        raise RecipeError([Problem(text, help=f"start {count}, or compute on the processor with model.device=cpu")])


class FollowingRun(Run):
    """The run as the processes see it that do not lead: they train, and write and print nothing."""

    team: Processes

    def execute(self) -> None:
        """Train the stages that process 0 trains, in its order."""
        while (following := self.team.next_stage()) is not None:
            self.stage_name, upstream = following
            self.hashes |= upstream
            stage = self.stages[self.stage_name]
            self.ready = set(self.recipe.stages)  # process 0 has made what this stage reads
            with self.team.training(stage.name, stage.key()), self.engine(stage.stage):
                self.make_room(stage.stage)
                stage.run(self.store.path(stage.name))
            self.models.forget(stage.name)

    def metrics(self, stage: Stage, size: int = 0) -> Metrics:
        """Written by process 0."""
        return Metrics(None)

    def engine_of(self, stage: Stage, folder: Path) -> EngineElsewhere:
        """Process 0 has the engine, which samples for all."""
        return EngineElsewhere()

    def cache(self) -> Path:
        """The folder that process 0 has made."""
        return self.folder / "cache"

    def notify(self, stage: str) -> Callable[..., None]:
        """No event: process 0 has them all."""
        return lambda hook, **values: None


class EngineElsewhere:
    """The engine of a stage, as the processes without it see it."""

    def request(self, request: Any) -> Any:
        raise RunFailed(
            "process 0 has the engine, and this process cannot sample\n"
            "help: start the run in one process, or write 'engine: local'"
        )

    def forget(self, role: str) -> None: ...

    def close(self) -> None: ...
