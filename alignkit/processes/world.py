"""Which process of how many this is, as the program that started it says in the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignkit.errors import Problem, RecipeError

if TYPE_CHECKING:
    from alignkit.recipe.schema import LauncherKeys

# What accelerate's launcher sets, and what it would do that alignkit does not.
REFUSED = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}
START = "start the run with 'alignkit run RECIPE --processes N', which calls accelerate's launcher"


@dataclass(frozen=True)
class World:
    """process: the number of this one, from 0. processes: of the run. shard: whether a launcher was asked for FSDP."""

    process: int = 0
    processes: int = 1
    shard: bool = False

    @property
    def leads(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.process == 0


def world_of(environment: Mapping[str, str] = os.environ) -> World:
    """What accelerate's launcher, or torchrun, has set; one process if neither has started this one.

    Raises RecipeError if a launcher was asked for several processes and started one, or was asked to cut the model into
    parts in a way that alignkit does not know.
    """
    fsdp = environment.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    for name in [name for variable, name in REFUSED.items() if environment.get(variable, "").lower() == "true"]:
        text = f"the launcher was asked for {name}, which alignkit does not use"
        help = f"leave {name} out, and start with --use_fsdp --fsdp_version 2, or with --multi_gpu"
        raise RecipeError([Problem(text, help=help)])
    if fsdp and environment.get("FSDP_VERSION", "1") != "2":
        text = "the launcher was asked for the first version of FSDP, but alignkit uses the second"
        raise RecipeError([Problem(text, help="add --fsdp_version 2")])
    if "RANK" in environment and "WORLD_SIZE" in environment and "MASTER_PORT" in environment:
        return World(int(environment["RANK"]), int(environment["WORLD_SIZE"]), shard=fsdp)
    if "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_PORT" in environment:
        text = "accelerate was asked for several processes, but started only one: it finds no GPU, and no MPI"
        raise RecipeError([Problem(text, help=f"add --multi_gpu, which also starts processes on CPUs, or {START}")])
    return World()


def check_size(launcher: LauncherKeys | None, world: World) -> None:
    """Raise RecipeError if a recipe asks for another number of processes than were started."""
    wanted = world.processes if launcher is None else launcher.processes
    if wanted == world.processes:
        return
    if world.processes == 1:
        text = f"the recipe asks for {wanted} processes, but this is the only one"
        raise RecipeError([Problem(text, help=START)])
    text = f"the recipe asks for {wanted} processes, but the launcher started {world.processes}"
    help = f"start {wanted}, or override the recipe with launcher.processes={world.processes}"
    raise RecipeError([Problem(text, help=help)])
