"""The interface of a launcher: whatever lets several processes run one recipe together, and asks engines.

A run of one process with its own sampler needs none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.plugins import plugins

ACCELERATE = "accelerate"  # the name of the one that runs use


@dataclass(frozen=True)
class World:
    """Which process of how many this is.

    Attributes:
        process: The number of this one, from 0.
        processes: Of the run.
        shard: Whether base models are cut with FSDP2.
    """

    process: int = 0
    processes: int = 1
    shard: bool = False


class Launcher:
    """Base class of a launcher."""

    def join(self, recipe: Any, folder: Path, world: World) -> Any:
        """Meet the other processes, each of which runs the recipe; returns the `Collectives` of the run.

        Raises RecipeError if several processes cannot run the recipe, and RunFailed if they do not meet or differ in
        what they run.

        Args:
            recipe: The recipe.
            folder: Of the run.
            world: Which process this is.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define join")

    def engine(self, component: Any, folder: Path, *, stage: str, seed: int, say: Callable[[str], None]) -> Any:
        """What asks the engine of a stage, and checks all that it returns; it samples instead of a `SharedModel`.

        Args:
            component: The recipe's engine.
            folder: For published adapters and for files of the engine.
            stage: Its name.
            seed: The stage's.
            say: Prints a line.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define engine")


def launcher() -> Launcher:
    """What starts several processes. Raises Unresolved if no plugin does."""
    made: Launcher = plugins().registry.get("launcher", ACCELERATE).implementation()
    return made
