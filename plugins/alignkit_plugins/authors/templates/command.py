"""The command `alignkit final-metric`.

Every start of alignkit loads this module, so import slow modules in the function.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from alignkit import DataError, RegisterCommand, hookimpl


def final_metric(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    metric: Annotated[str, typer.Option(metavar="NAME", help="A key of metrics.jsonl.")] = "reward",
) -> None:
    """Print a metric's last value in each stage of a run."""
    files = sorted(run.glob("*/metrics.jsonl"))
    if not files:
        raise DataError(f"{run}: no stage of a run has written metrics there")
    for file in files:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        values = [row[metric] for row in rows if metric in row]
        print(f"{file.parent.name}: {values[-1] if values else 'none'}")


@hookimpl
def register_commands(register: RegisterCommand) -> None:
    register(final_metric)
