"""The launcher that runs use: several processes exchange everything through accelerate, and engines
are asked here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import Add, hookimpl
from alignkit.kinds import Launcher, World

if TYPE_CHECKING:
    from alignkit.recipe.schema import Recipe
    from alignkit_plugins.processes.collectives import ProcessCollectives
    from alignkit_plugins.processes.engine import StageEngine


class Accelerate(Launcher):
    """Each method imports torch."""

    def join(self, recipe: Recipe, folder: Path, world: World) -> ProcessCollectives:
        from alignkit_plugins.processes.together import join

        return join(recipe, folder, world)

    def engine(
        self, component: Any, folder: Path, *, stage: str, seed: int, say: Callable[[str], None]
    ) -> StageEngine:
        from alignkit_plugins.processes.engine import StageEngine

        return StageEngine(component, folder, stage=stage, seed=seed, say=say)


@hookimpl
def register(add: Add) -> None:
    add("launcher", "accelerate", Accelerate, "several processes, with accelerate's collectives")
