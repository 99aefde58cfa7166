"""The command `alignkit verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkit.commands import Result, load, stage_of


def verify(
    stage: Annotated[
        Path,
        typer.Argument(
            metavar="RUN[/STAGE]", help="Folder of a run, or of one of its stages, to run again."
        ),
    ],
) -> Result:
    """Run stages again and say whether the bytes are the same.

    The inputs are the recorded ones. The run is only read. Judges on a server are not asked: their
    stored replies count. Exit code 7: something differs.

    \b
    Examples:
      alignkit verify runs/quickstart
      alignkit verify runs/quickstart/align
    """
    from alignkit.io.results import RECIPE
    from alignkit_plugins.models.find import find_run

    run, name = find_run(stage)
    recipe = load(str(run / RECIPE), None)
    names = [stage_of(recipe, name).name] if name else list(recipe.stages)
    from alignkit_plugins.recipes.rerun import verified  # imports torch

    return verified(recipe, run, names)
