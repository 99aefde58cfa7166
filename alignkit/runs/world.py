"""Which process of how many this is, as the program that started it says in the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from alignkit.errors import Problem, RecipeError

# What accelerate's launcher sets if it is asked for what alignkit does not use.
UNUSED = {"ACCELERATE_USE_MEGATRON_LM": "Megatron-LM", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
# What accelerate's launcher sets, and alignkit undoes: transformers would load weights in process 0 only, and none
# elsewhere.
NOT_BY_ACCELERATE = {"FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}


@dataclass(frozen=True)
class World:
    """process: the number of this one, from 0. processes: of the run. shard: whether base models are cut with FSDP2."""

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
    shard = _asked_for(environment)
    if "RANK" in environment and "WORLD_SIZE" in environment and "MASTER_PORT" in environment:
        return World(int(environment["RANK"]), int(environment["WORLD_SIZE"]), shard)
    if "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_PORT" in environment:
        text = "accelerate was asked for several processes, but started only one: it finds no GPU, and no MPI"
        raise RecipeError([Problem(text, help="add --multi_gpu, which also starts processes on CPUs, or use torchrun")])
    return World(shard=shard)


def _asked_for(environment: Mapping[str, str]) -> bool:
    """Whether accelerate's launcher was asked to cut the model with FSDP2.

    Raises RecipeError if it was asked for what alignkit does not do.
    """
    for variable, name in UNUSED.items():
        if _is_set(environment, variable):
            text = f"the launcher was asked for {name}, which alignkit does not use"
            help = f"leave {name} out, and start with --use_fsdp --fsdp_version 2, or with --multi_gpu"
            raise RecipeError([Problem(text, help=help)])
    if not _is_set(environment, "ACCELERATE_USE_FSDP"):
        return False
    if environment.get("FSDP_VERSION", "1") != "2":
        text = "the launcher was asked for the first version of FSDP, but alignkit uses the second"
        raise RecipeError([Problem(text, help="add --fsdp_version 2")])
    return True


def _is_set(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() == "true"
