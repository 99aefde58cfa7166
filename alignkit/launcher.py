"""The interface of a launcher: whatever starts the processes that run one recipe together, and asks others for work.

A run of one process with its own sampler needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alignkit.io.progress import Reporter

ACCELERATE = "accelerate"  # the name of the one that runs use


class Launcher:
    """Base class of a launcher. `world` says which process of how many this is: an `alignkit.runs.world.World`.

    The same class is asked in the process of the command, which starts the others, and in each of those.
    """

    def check(self, recipe: Any, world: Any) -> None:
        """Raise RecipeError if several processes cannot run a recipe (`alignkit.recipe.schema.Recipe`).

        Called by commands that only look at a recipe, too, and before anything is written.
        """

    def start(self, processes: int, arguments: Sequence[str]) -> int:
        """Run alignkit with these arguments in several processes on this machine, until all have ended.

        Returns the exit code of the first that failed, or 0. Raises RunFailed if they cannot be started, or if one was
        ended from outside. Signals that this process gets must reach all of them.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define start")

    def run(self, recipe: Any, folder: Path, reporter: Reporter, world: Any) -> int:
        """Run a recipe as one of several processes; returns the exit code.

        Process 0 leads: it runs every stage, writes into the folder of the run, and raises its error. The others train
        what it tells them to, and write and print nothing but errors that it does not know. Raises RecipeError if
        several processes cannot run the recipe, and RunFailed if they do not meet or differ in what they run.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define run")

    def engine(self, component: Any, folder: Path, *, stage: str, seed: int, say: Callable[[str], None]) -> Any:
        """What asks the engine of a stage, and checks all that it returns; it samples instead of a `SharedModel`.

        component: the recipe's engine. folder: for published adapters and for files of the engine.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define engine")
