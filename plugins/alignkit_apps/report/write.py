"""Write the report of a run into its folder: report.html, report.md and report.json."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from alignkit.errors import reason_of
from alignkit.io.atomic import write_json, write_text
from alignkit.runs.files import FACTS, MARKDOWN, PAGE
from alignkit_apps.report.facts import facts_of

SWITCH = "ALIGNKIT_REPORT"  # 0: a run writes no report


def write_report(folder: Path) -> Path:
    """Write all three files; returns the page. Raises RecipeError if the folder is not that of a run."""
    facts = facts_of(folder)
    from alignkit_apps.report.markdown import markdown  # after the check, which is fast
    from alignkit_apps.report.page import page

    write_json(folder / FACTS, facts)
    write_text(folder / MARKDOWN, markdown(facts))
    write_text(folder / PAGE, page(facts))
    return folder / PAGE


def report_run(folder: Path, say: Callable[[str], None]) -> None:
    """Write the report of a run that ends. Whatever goes wrong is said in a line; how the run ended stays as it is."""
    if os.environ.get(SWITCH, "") == "0":
        return
    try:
        say(f"report: {write_report(folder)}")
    except (Exception, KeyboardInterrupt) as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else reason_of(error)
        say(f"no report was written ({reason}); for another try: alignkit report {folder}")
