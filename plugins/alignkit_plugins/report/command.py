"""The command `alignkit show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkit.commands import Result


def show(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            help="Folders of the runs to show, or one result: RUN/align@ppo. Default: list runs/.",
        ),
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete all results of a run but the current ones.")
    ] = False,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the report of a run in a browser.")
    ] = False,
) -> Result:
    """Show what a run found so far, or compare several.

    Of one run: a line per stage, and the screen that it prints at its end. Of several: what
    their stages learned, the evaluations, and how recipes and versions differ. Nothing is written.

    align@ppo is the newest result of the stage align by ppo; align@ppo~1 is the one before.
    evaluate, chat, serve and export take RUN/align@ppo. Earlier results are restored when the
    recipe is changed back.

    \b
    Examples:
      alignkit show runs/quickstart
      alignkit show runs/quickstart runs/seed1
      alignkit show runs/quickstart --open
      alignkit show runs/quickstart --prune
    """
    from alignkit_plugins.report.show import shown

    return shown(folders or [], prune, open_page)
