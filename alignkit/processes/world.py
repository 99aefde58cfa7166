"""Which process of how many this is, as the program that started it says in the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignkit.errors import Problem, RecipeError

if TYPE_CHECKING:
    from alignkit.recipe.schema import LauncherKeys

# What accelerate's launcher sets, and what it would do.
SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
START = "start the run with 'alignkit run RECIPE --processes N', which calls accelerate's launcher"


@dataclass(frozen=True)
class World:
    """process: the number of this one, from 0. processes: of the run."""

    process: int = 0
    processes: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.process == 0


def world_of(environment: Mapping[str, str] = os.environ) -> World:
    """What accelerate's launcher, or torchrun, has set; one process if neither has started this one.

    Raises RecipeError if a launcher was asked for several processes and started one, or was asked to cut the model into
    parts, which alignkit does not do.
    """
    if asked := [name for variable, name in SHARDING.items() if environment.get(variable, "").lower() == "true"]:
        text = f"the launcher was asked for {asked[0]}, but every process of a run holds the whole base model"
        help = f"leave {asked[0]} out, and start with --multi_gpu; a smaller base fits with 'quantization: nf4'"
        raise RecipeError([Problem(text, help=help)])
    if "RANK" in environment and "WORLD_SIZE" in environment and "MASTER_PORT" in environment:
        return World(int(environment["RANK"]), int(environment["WORLD_SIZE"]))
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
