"""What a run writes and shows for its readers: when it starts, the results of its stages, and when
it ends.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignkit import hookimpl
from alignkit.contract.hookspecs import ObservedRun
from alignkit.errors import reason_of
from alignkit.io.atomic import write_json, write_text
from alignkit.io.results import FACTS, PAGE, RECIPE
from alignkit.io.text import Say, is_file

SWITCH = "ALIGNKIT_REPORT"  # 0: a run writes no report


@hookimpl(tryfirst=True)
def run_started(run: ObservedRun) -> None:
    from alignkit_plugins.report.history import write_start

    write_start(run.folder, run.recipe.folder)


@hookimpl
def stage_changed(
    run: ObservedRun, stage: str, record: Mapping[str, Any], parts: Mapping[str, Any]
) -> None:
    from alignkit_plugins.cells.changes import change_since

    why = change_since(record, parts, run.recipe.stages[stage])
    run.say(f"{stage}: changed since the last run{why}, starting over")


@hookimpl
def stage_finished(run: ObservedRun, stage: str) -> None:
    from alignkit_plugins.cells.rows import keep_row

    keep_row(run.recipe, run.folder, stage)


@hookimpl
def data_read(run: ObservedRun, loaded: Any) -> None:
    from alignkit_plugins.report.data_card import describe

    for line in describe(loaded):
        if not line.startswith("  "):  # a row, which `alignkit check` shows
            run.say(line)


@hookimpl(wrapper=True, tryfirst=True)
def run_finished(run: ObservedRun, error: BaseException | None) -> Iterator[None]:
    """Write how the run ended, and the report after all others have seen the end, even if one of
    them failed.
    """
    from alignkit_plugins.report.history import write_end

    write_end(run.folder, error, run.peak_memory)
    try:
        return (yield)
    finally:
        if is_file(run.folder / RECIPE):  # no stage began otherwise, and nothing is to report
            report_run(run.folder, run.say)


def report_run(folder: Path, say: Say, cells: Any = None) -> None:
    """Write the report of a run that ends. Whatever goes wrong is said in a line; how the run ended
    stays as it is. cells: see `write_report`.
    """
    if os.environ.get(SWITCH, "") == "0":
        return
    try:
        say(f"report: {write_report(folder, cells)}")
    except (Exception, KeyboardInterrupt) as error:
        say(f"no report was written ({reason_of(error)}); to see it: alignkit show {folder} --open")


def write_report(folder: Path, cells: Any = None) -> Path:
    """Write report.json and report.html into a run's folder; returns the page. cells: what they
    say (`so_far`), if that is known.
    """
    from alignkit_plugins.cells.rows import rows_of
    from alignkit_plugins.report.cells import section, so_far
    from alignkit_plugins.report.document import page
    from alignkit_plugins.report.facts import facts_of

    facts, part = None, None
    if is_file(folder / RECIPE):
        facts = facts_of(folder)
        write_json(folder / FACTS, facts)
    if cells or rows_of(folder):
        part = section(*(cells or so_far([folder])))
    write_text(folder / PAGE, page(facts, part))
    return folder / PAGE
