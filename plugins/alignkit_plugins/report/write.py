"""Write the report of a run into its folder: report.html, report.md and report.json."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from alignkit.errors import reason_of
from alignkit.io.atomic import write_json, write_text
from alignkit.io.results import FACTS, MARKDOWN, PAGE
from alignkit_plugins.report.facts import Facts, facts_of

SWITCH = "ALIGNKIT_REPORT"  # 0: a run writes no report


def write_report(folder: Path, facts: Facts) -> Path:
    """Write all three files from the facts of a run; returns the page."""
    from alignkit_plugins.report.markdown import markdown
    from alignkit_plugins.report.page import page

    write_json(folder / FACTS, facts)
    write_text(folder / MARKDOWN, markdown(facts))
    write_text(folder / PAGE, page(facts))
    return folder / PAGE


def report_run(folder: Path, say: Callable[[str], None]) -> None:
    """Write the report of a run that ends. Whatever goes wrong is said in a line; how the run ended
    stays as it is.
    """
    if os.environ.get(SWITCH, "") == "0":
        return
    try:
        say(f"report: {write_report(folder, facts_of(folder))}")
    except (Exception, KeyboardInterrupt) as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else reason_of(error)
        say(f"no report was written ({reason}); to see it: alignkit show {folder} --open")
