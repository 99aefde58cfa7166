"""What `alignkit show` prints: what a run found and its results, or runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from alignkit.commands import refuse
from alignkit.io.atomic import write_text
from alignkit.io.results import PAGE, RECIPE, is_result_name
from alignkit.io.text import is_file
from alignkit.report import Block, Report, Table
from alignkit_plugins.models.find import RUNS, runs_in
from alignkit_plugins.report.compare import compared
from alignkit_plugins.report.facts import Facts, facts_of
from alignkit_plugins.report.history import starts_of
from alignkit_plugins.report.results import earlier_results, results_table
from alignkit_plugins.report.screen import screen, stage_lines


def shown(folders: Sequence[Path]) -> tuple[Report, Facts | None]:
    """What a run found, one of its results, a comparison of several runs, or the runs in a folder.

    folders: none for the runs in `runs`. The second value is the facts of the report; None without
    one.

    Raises RecipeError for a folder that is not a run's and has none.
    """
    results = [folder for folder in folders if is_result_name(folder.name)]
    if results and len(folders) > 1:
        words = " ".join(map(str, folders))
        help = (
            "of one run, `alignkit show RUN` has all results side by side; to compare their "
            "answers: alignkit evaluate"
        )
        refuse(
            f"{results[0]} is one result, and only runs can be compared",
            f"{help} {words} --prompts FILE --reward REWARD",
        )
    if len(folders) > 1:
        return compared(folders), None
    folder = folders[0] if folders else RUNS
    if not is_file(folder / RECIPE) and (runs := runs_in(folder)):
        return Report(
            [_listed(runs), "alignkit show RUN shows one, and RUN RUN compares two"]
        ), None
    if not folders:
        refuse(
            "there are no runs in runs/",
            "for example: alignkit run smoke; alignkit show runs/smoke",
        )
    if results:
        if not is_file(folder.parent / RECIPE):
            refuse(
                f"{folder} is a result of no run",
                f"write RUN/{folder.name}, such as runs/quickstart/{folder.name}",
            )
        return Report([results_table(folder.parent, folder.name)]), None
    facts = facts_of(folder)
    run = facts["run"]
    head = f"{run['name']}: {run['outcome']}, {run['stages_done']} of {run['stages']} stages"
    failure = [_failure(facts, folder)] if run["outcome"] == "failed" else []
    blocks: list[Block] = ["\n".join([head, *failure, *stage_lines(facts)])]
    blocks += [text] if (text := screen(facts, stages=False)) else []
    lines = (
        [f"earlier results: {', '.join(earlier)}"] if (earlier := earlier_results(folder)) else []
    )
    lines += [f"report: {folder / PAGE}"] if (folder / PAGE).is_file() else []
    return Report([*blocks, "\n".join(lines)] if lines else blocks), facts


def open_report(facts: Facts) -> Path:
    """Open the page of a run as it is now in a browser, from a temporary folder; returns the
    file.
    """
    import tempfile
    import webbrowser

    from alignkit_plugins.report.page import page

    file = Path(tempfile.mkdtemp(prefix="alignkit-")) / PAGE
    write_text(file, page(facts))
    webbrowser.open(file.as_uri())
    return file


def _listed(runs: Sequence[Path]) -> Table:
    """Runs, with what became of their last starts."""
    lasts = [(starts_of(run) or [{}])[-1] for run in runs]
    rows = [
        [str(run), last.get("outcome", "-"), last.get("started", "-")]
        for run, last in zip(runs, lasts, strict=True)
    ]
    return Table("", ["run", "last start", "at"], rows, keys=3)


def _failure(facts: Facts, folder: Path) -> str:
    """Why the last start failed, on a line, and how many results it did not make."""
    began = datetime.fromisoformat(facts["starts"][-1]["started"]).timestamp()
    done = [
        folder / one["name"] / "stage.json"
        for one in facts["stages"]
        if one["state"] in ("done", "reused")
    ]
    older = sum(file.stat().st_mtime < began for file in done)
    lines = [" ".join(facts["run"]["message"].split()).removeprefix("error: ")]
    lines += [f"results that are older than this failure: {older} of {len(done)}"] if older else []
    return "\n".join(lines)
