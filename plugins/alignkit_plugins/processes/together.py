"""A recipe run by several processes, each of which was started with the same command.

All run the same stages in the same order. Process 0 decides which of them are complete, runs steps,
asks servers, and writes; the others get what it returns. Training is dealt to all. If one dies,
whoever started them ends the others.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from alignkit.algorithm import ExternalTrainer
from alignkit.errors import Problem, RecipeError, RunFailed
from alignkit.io.digest import versions
from alignkit.kinds import World
from alignkit.recipe.schema import Recipe
from alignkit_plugins.processes import sharded
from alignkit_plugins.processes.collectives import ProcessCollectives
from alignkit_plugins.processes.sharded_forward import LockstepCollectives

LONGEST = timedelta(hours=6)  # that a process computes while the others wait for it


def join(recipe: Recipe, folder: Path, world: World) -> ProcessCollectives:
    """Wait for all processes of the run; each calls this.

    Raises RecipeError if they cannot run the recipe, and RunFailed if they do not meet, or differ
    in what they run.
    """
    from accelerate import PartialState

    check_stages(recipe)
    if world.shard:
        check_bases(recipe)
    device = recipe.model.device
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    check_device(device, on_cpu)
    try:
        state = PartialState(cpu=on_cpu, timeout=LONGEST)
    except (RuntimeError, ValueError, OSError) as error:
        raise RunFailed(f"process {world.process} did not reach the others: {error}") from None
    # It was made before, by something that knew of one process
    if state.num_processes != world.processes:
        text = (
            f"accelerate knows {state.num_processes} processes, but the launcher started "
            f"{world.processes}"
        )
        raise RunFailed(text)
    kind = LockstepCollectives if world.shard else ProcessCollectives
    collectives = kind(world.process, world.processes, state.device)
    collectives.compare("the run", lambda: facts_of(recipe, folder, world))
    return collectives


def check_stages(recipe: Recipe) -> None:
    """Raise RecipeError if a stage cannot be trained by several processes."""
    problems = []
    for stage in recipe.stages.values():
        name = stage.component.name
        if stage.kind == "algorithm" and issubclass(
            stage.component.registration.implementation, ExternalTrainer
        ):
            text = f"stage '{stage.name}': {name} trains by itself, and in one process"
            help = "start the run with 'alignkit run RECIPE'"
            problems.append(recipe.document.problem(("stages", stage.name), text, help=help))
    if problems:
        raise RecipeError(problems)


def check_bases(recipe: Recipe) -> None:
    """Raise RecipeError if the base model cannot be cut into parts, or a stage cannot train the
    parts.
    """
    spec, problems = recipe.model, []
    help = "start the run without --use_fsdp"
    for stage in recipe.stages.values():
        settings = stage.settings
        if settings is None or spec.lora is not None:
            continue
        name = getattr(settings.optimizer, "name", settings.optimizer)
        if name != "adamw":
            text = (
                f"stage '{stage.name}': '{name}' cannot train weights that are cut into parts; "
                "'adamw' can"
            )
            problems.append(
                recipe.document.problem(("stages", stage.name, "optimizer"), text, help=help)
            )
        if stage.engine is not None:
            text = (
                f"stage '{stage.name}': the engine '{stage.engine.name}' needs all weights in "
                "process 0"
            )
            problems.append(recipe.document.problem(("stages", stage.name), text, help=help))
    if spec.lora is None and not sharded.can_learn():
        text = (
            "model: this version of torch cannot cut weights that learn, as 'lora: none' asks for"
        )
        problems.append(recipe.document.problem(("model", "lora"), text, help=help))
    if spec.quantization != "none":
        text = "model: a quantized base model cannot be cut into parts"
        problems.append(recipe.document.problem(("model", "quantization"), text, help=help))
    if problems:
        raise RecipeError(problems)


def facts_of(recipe: Recipe, folder: Path, world: World) -> dict[str, Any]:
    """What must be alike in all processes before the first of them writes. Keys of stages are
    compared later.
    """
    facts: dict[str, Any] = {
        "python": sys.version.split()[0],
        **versions(("accelerate",)),
        "recipe": recipe.resolved,
    }
    facts |= {"folder": str(folder.resolve()), "--use_fsdp": world.shard}
    return facts


def check_device(device: str, on_cpu: bool) -> None:
    """Raise RecipeError if the device of the models does not suit several processes."""
    if ":" in device:
        text = f"'device: {device}' is one device, but each process needs its own"
        raise RecipeError(
            [Problem(text, help="leave 'device' out: each process takes a GPU of its own")]
        )
    local, count = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if not on_cpu and local > count:
        text = f"{local} processes need {local} GPUs, but this machine has {count}"
        raise RecipeError(
            [
                Problem(
                    text, help=f"start {count}, or compute on the processor with model.device=cpu"
                )
            ]
        )
