"""The commands `report` and `compare`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from alignkit.io.printable import encodable, printable

PIPE_WIDTH = 100  # characters


def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, such as runs/quickstart.")],
) -> None:
    """Write a run's report again.

    It is report.html, report.md and report.json in the run's folder. A run writes them at its end.

    \b
    Example:
      alignkit report runs/quickstart
    """
    from alignkit_apps.report.write import write_report

    print(encodable(printable(str(write_report(folder))), sys.stdout.encoding or "ascii"))


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs, or of one run.")],
) -> None:
    """Show how runs differ: recipes, versions, metrics, evaluations.

    Of one run, it shows the results of each stage side by side: align@ppo, align@rejection_sampling.

    \b
    Examples:
      alignkit compare runs/quickstart
      alignkit compare runs/quickstart runs/seed1
    """
    from alignkit_apps.report.compare import compared

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH
    print(encodable(compared(folders).text(width), sys.stdout.encoding or "ascii"))
