"""Which process of how many this is, as the program that started it says in the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignkit.errors import Problem, RecipeError

if TYPE_CHECKING:
    from alignkit.recipe.schema import LauncherKeys, Shard

# What accelerate's launcher sets if it is asked for what alignkit does not use.
UNUSED = {"ACCELERATE_USE_MEGATRON_LM": "Megatron-LM", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
# What accelerate's launcher sets, and alignkit undoes: transformers would load weights in process 0 only, and none
# elsewhere.
NOT_BY_ACCELERATE = {"FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
START = "start the run with 'alignkit run RECIPE --processes N', which calls accelerate's launcher"


@dataclass(frozen=True)
class World:
    """process: the number of this one, from 0. processes: of the run. shard: what a launcher was asked to cut with."""

    process: int = 0
    processes: int = 1
    shard: Shard | None = None

    @property
    def leads(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.process == 0


def world_of(environment: Mapping[str, str] = os.environ) -> World:
    """What accelerate's launcher, or torchrun, has set; one process if neither has started this one.

    Raises RecipeError if a launcher was asked for several processes and started one, or was asked to cut the model into
    parts in a way that alignkit does not know.
    """
    shard = _asked_for(environment)
    if "RANK" in environment and "WORLD_SIZE" in environment and "MASTER_PORT" in environment:
        return World(int(environment["RANK"]), int(environment["WORLD_SIZE"]), shard)
    if "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_PORT" in environment:
        text = "accelerate was asked for several processes, but started only one: it finds no GPU, and no MPI"
        raise RecipeError([Problem(text, help=f"add --multi_gpu, which also starts processes on CPUs, or {START}")])
    return World(shard=shard)


def _asked_for(environment: Mapping[str, str]) -> Shard | None:
    """What accelerate's launcher was asked to cut the model with. Raises RecipeError if alignkit does not do it."""
    for variable, name in UNUSED.items():
        if _is_set(environment, variable):
            text = f"the launcher was asked for {name}, which alignkit does not use"
            help = f"leave {name} out, and start with --use_fsdp --fsdp_version 2, or with --multi_gpu"
            raise RecipeError([Problem(text, help=help)])
    if not _is_set(environment, "ACCELERATE_USE_FSDP"):
        return None
    if environment.get("FSDP_VERSION", "1") != "2":
        text = "the launcher was asked for the first version of FSDP, but alignkit uses the second"
        raise RecipeError([Problem(text, help="add --fsdp_version 2")])
    return "fsdp"


def _is_set(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() == "true"


def shard_of(launcher: LauncherKeys | None, world: World) -> Shard | None:
    """What base models are cut with, as a recipe or the program that started this process asks; None: they are not."""
    return world.shard or ("fsdp" if launcher is not None and launcher.shard else None)


def check_size(launcher: LauncherKeys | None, world: World) -> None:
    """Raise RecipeError if a recipe asks for another number of processes than were started."""
    wanted = world.processes if launcher is None else launcher.processes
    if wanted == world.processes:
        return
    if world.processes == 1:
        text = f"the recipe asks for {wanted} processes, but this is the only one"
        raise RecipeError([Problem(text, help=START)])
    text = f"the recipe asks for {counted_processes(wanted)}, but the launcher started {world.processes}"
    help = f"start {wanted}, or override the recipe with launcher.processes={world.processes}"
    raise RecipeError([Problem(text, help=help)])


def counted_processes(count: int) -> str:
    """`2 processes`, for an error."""
    return f"{count} processes" if count > 1 else "1 process"
