"""Inject faults and print what became of them: `python -m tests.faults [FAMILY...]`."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from tests.faults import crashes, flips, judge_servers, models, plugins, servers, signals, texts
from tests.faults.case import HELD, HUNG, LOST, OUTCOMES, SILENT, Case, TooLong, command
from tests.faults.runs import results, write_recipe

FAMILIES = (
    "crash",
    "flip",
    "recipe",
    "row",
    "model",
    "template",
    "plugin",
    "judge",
    "server",
    "signal",
)


def main(
    families: Annotated[
        list[str] | None, typer.Argument(help=f"Default: {', '.join(FAMILIES)}.")
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Run only every Nth case.")] = 1,
    show: Annotated[int, typer.Option(min=0, help="Cases that did not hold to show in full.")] = 5,
) -> None:
    """Inject faults. Exits with 1 if anything was silent, lost or hung."""
    wanted = set(families or FAMILIES)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["ALIGNKIT_CACHE"] = str(Path(scratch) / "cache")
        os.environ.pop("ALIGNKIT_DEBUG", None)
        os.environ["ALIGNKIT_REPORT"] = "0"  # drawing takes longer than the runs
        os.environ["ALIGNKIT_REUSE"] = "0"
        began = time.monotonic()
        cases = [case for case in _cases(Path(scratch), wanted) if case.family in wanted][::every]
        found = [(case, *_outcome(case, Path(scratch) / "case")) for case in cases]
    _print(found, time.monotonic() - began, show)
    bad = [outcome for _, outcome, _ in found if outcome in (SILENT, LOST, HUNG)]
    raise typer.Exit(1 if bad else 0)


def _cases(scratch: Path, wanted: set[str]) -> list[Case]:
    (scratch / "recipe").mkdir()
    recipe = write_recipe(scratch / "recipe")
    cases: list[Case] = []
    if wanted & {"crash", "flip", "model", "template", "signal"}:
        finished = scratch / "finished"
        said = command(["run", str(recipe), "--out", str(finished)])
        assert said.code == 0, said.text
        whole = results(finished)
        cases += crashes.cases(recipe, whole, scratch) if "crash" in wanted else []
        cases += flips.cases(recipe, whole, finished) if "flip" in wanted else []
        cases += models.cases(recipe, scratch, finished) if wanted & {"model", "template"} else []
        cases += signals.cases(recipe, whole, scratch) if "signal" in wanted else []
    cases += texts.cases(recipe) if wanted & {"recipe", "row"} else []
    cases += plugins.cases(recipe) if "plugin" in wanted else []
    cases += judge_servers.cases(recipe) if "judge" in wanted else []
    cases += servers.cases() if "server" in wanted else []
    return cases


def _outcome(case: Case, folder: Path) -> tuple[str, str]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        return case.run(folder)
    except TooLong:
        return HUNG, ""


def _print(found: list[tuple[Case, str, str]], seconds: float, show: int) -> None:
    counts = Counter((case.family, outcome) for case, outcome, _ in found)
    families = sorted({case.family for case, _, _ in found})
    print(f"| family | cases | {' | '.join(OUTCOMES)} |\n|---|{'---|' * (len(OUTCOMES) + 1)}")
    for family in families:
        row = [counts[family, outcome] for outcome in OUTCOMES]
        print(f"| {family} | {sum(row)} | {' | '.join(map(str, row))} |")
    row = [sum(counts[family, outcome] for family in families) for outcome in OUTCOMES]
    print(f"| all | {sum(row)} | {' | '.join(map(str, row))} |\n\n{seconds / 60:.1f} minutes")
    for case, outcome, text in [item for item in found if item[1] != HELD][:show]:
        print(f"\n{outcome}: {case.family}, {case.name}\n{text[-1500:]}", file=sys.stderr)


if __name__ == "__main__":
    typer.run(main)
