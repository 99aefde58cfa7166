"""The command `alignkit verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkit.commands import Result, load, refuse, stage_of
from alignkit.io.results import RECIPE


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
    run = stage if (stage / RECIPE).is_file() else stage.parent
    if not (run / RECIPE).is_file():
        help = "name the folder of a run, such as runs/quickstart, or of one of its stages"
        refuse(f"{stage} is neither a run nor a stage of one: no {RECIPE} is there", help)
    recipe = load(str(run / RECIPE), None)
    names = list(recipe.stages) if run == stage else [stage_of(recipe, stage.name).name]
    from alignkit_plugins.recipes.rerun import verified  # imports torch

    return verified(recipe, run, names)
