"""The launcher that runs use: several processes exchange everything through accelerate, and engines
are asked here.

A recipe may be run by several processes, each of which was started with the same command. All run
the same stages in the same order. Process 0 decides which of them are complete, runs steps, asks
servers, and writes; the others get what it returns. Training is dealt to all. If one dies, whoever
started them ends the others.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import Add, hookimpl
from alignkit.contract.algorithm import ExternalTrainer
from alignkit.contract.kinds import Launcher, World
from alignkit.errors import Problem, RecipeError, RunFailed, Stopped
from alignkit.io.digest import versions
from alignkit.io.text import Say
from alignkit.runs.signals import SIGNALS

if TYPE_CHECKING:
    from alignkit.recipe.schema import Recipe
    from alignkit_plugins.processes.collectives import ProcessCollectives
    from alignkit_plugins.processes.engine import PluginEngine

LONGEST = timedelta(hours=6)  # others wait this long for a process that computes
WHOLE = "start the run without --use_fsdp"


class Accelerate(Launcher):
    """Each method imports torch."""

    def launch(self, processes: int) -> int:
        from torch.distributed import run as torchrun
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

        passed_on = ",".join(["SIGINT", "SIGQUIT", *(number.name for number in SIGNALS)])
        options = [
            "--standalone",
            f"--nproc-per-node={processes}",
            f"--signals-to-handle={passed_on}",
        ]
        try:
            with _shared_machine(processes):
                torchrun.run(torchrun.parse_args([*options, "-m", "alignkit", *sys.argv[1:]]))
        except ChildFailedError as error:
            _, failure = error.get_first_failure()
            return max(1, failure.exitcode)
        except SignalException as error:
            return 130 if error.sigval == signal.SIGINT else Stopped.exit_code
        return 0

    def join(self, recipe: Recipe, folder: Path, world: World) -> ProcessCollectives:
        """Wait for all processes of the run; each calls this.

        Raises RecipeError if they cannot run the recipe, and RunFailed if they do not meet, or
        differ in what they run.
        """
        import torch
        from accelerate import PartialState

        from alignkit_plugins.processes.collectives import ProcessCollectives
        from alignkit_plugins.processes.sharded_forward import LockstepCollectives

        shard = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
        if shard:
            # Transformers would load weights in process 0 only, and none elsewhere.
            os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        on_cpu = recipe.model.device == "cpu" or not torch.cuda.is_available()
        problems = [*problems_of_stages(recipe, shard), *problems_of_device(recipe, on_cpu)]
        if problems:
            raise RecipeError(problems)
        try:
            state = PartialState(cpu=on_cpu, timeout=LONGEST)
        except (RuntimeError, ValueError, OSError) as error:
            raise RunFailed(f"process {world.process} did not reach the others: {error}") from None
        count = state.num_processes
        if count != world.processes:  # it was made before, by something that knew of one process
            raise RunFailed(
                f"accelerate knows {count} processes, but the launcher started {world.processes}"
            )
        kind = LockstepCollectives if shard else ProcessCollectives
        collectives = kind(world.process, world.processes, state.device)
        facts: dict[str, Any] = {
            "python": sys.version.split()[0],
            **versions(("accelerate",)),
            "recipe": recipe.resolved,
            "folder": str(folder.resolve()),
            "--use_fsdp": shard,
        }
        # Before the first of them writes. Keys of stages are compared later.
        collectives.compare("the run", lambda: facts)
        return collectives

    def engine(
        self, component: Any, folder: Path, *, stage: str, seed: int, say: Say
    ) -> PluginEngine:
        from alignkit_plugins.processes.engine import PluginEngine

        return PluginEngine(component, folder, stage=stage, seed=seed, say=say)


@contextmanager
def _shared_machine(processes: int) -> Iterator[None]:
    """Each process gets its part of the cores, and process 0 says what happened. Afterwards signals,
    the environment and logs are the caller's again: torch's launcher keeps its handlers.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGQUIT)}
    log, threads = logging.getLogger("torch.distributed"), os.environ.get("OMP_NUM_THREADS")
    level = log.level
    log.setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    try:
        yield
    finally:
        log.setLevel(level)
        if threads is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def problems_of_stages(recipe: Recipe, shard: bool) -> list[Problem]:
    """What several processes cannot do, or cannot do with a part of the weights each."""
    problems: list[Problem] = []

    def refuse(place: tuple[str, ...], text: str, help: str = WHOLE) -> None:
        problems.append(recipe.document.problem(place, text, help=help))

    cut = shard and recipe.model.lora is None
    for name, stage in recipe.stages.items():
        cls = stage.component.registration.implementation
        if isinstance(cls, type) and issubclass(cls, ExternalTrainer):
            text = f"stage '{name}': {stage.component.name} trains by itself, and in one process"
            refuse(("stages", name), text, "start the run with 'alignkit run RECIPE'")
        if not cut or stage.settings is None:
            continue
        optimizer = stage.settings.optimizer
        optimizer = getattr(optimizer, "name", optimizer)
        if optimizer != "adamw":
            text = f"'{optimizer}' cannot train weights that are cut into parts; 'adamw' can"
            refuse(("stages", name, "optimizer"), f"stage '{name}': {text}")
        if stage.engine is not None:
            text = f"the engine '{stage.engine.name}' needs all weights in process 0"
            refuse(("stages", name), f"stage '{name}': {text}")
    if cut:
        from alignkit_plugins.processes.sharded_forward import can_learn

        if not can_learn():
            text = (
                "model: this version of torch cannot cut weights that learn, as 'lora: none' "
                "asks for"
            )
            refuse(("model", "lora"), text)
    if shard and recipe.model.quantization != "none":
        refuse(("model", "quantization"), "model: a quantized base model cannot be cut into parts")
    return problems


def problems_of_device(recipe: Recipe, on_cpu: bool) -> list[Problem]:
    """Why the device of the models does not suit several processes."""
    import torch

    device = recipe.model.device
    if ":" in device:
        text = f"'device: {device}' is one device, but each process needs its own"
        return [Problem(text, help="leave 'device' out: each process takes a GPU of its own")]
    local, count = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if on_cpu or local <= count:
        return []
    text = f"{local} processes need {local} GPUs, but this machine has {count}"
    return [Problem(text, help=f"start {count}, or compute on the processor with model.device=cpu")]


@hookimpl
def register(add: Add) -> None:
    summary = "several processes, with accelerate's collectives"
    add("launcher", "accelerate", Accelerate, summary, default=True)
