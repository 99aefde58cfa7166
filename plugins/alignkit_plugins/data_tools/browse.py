"""The page of `alignkit data browse`: one file with the rows, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alignkit.io.atomic import write_text
from alignkit_plugins.data_tools.clean import cleaned_file
from alignkit_plugins.data_tools.files import groups_of, name_of
from alignkit_plugins.servers.page import templates
from alignkit_plugins.text.shown import ReadableTurn, counts, readable_turns, shortened

MOST = 5_000  # rows on a page
LONGEST = 20_000  # characters of a text
PERSONAL = "personal"  # details, which a row has


def write_page(options: Any, out: Path) -> str:
    """Write the page of a file. options: of a step `clean`. Returns what the file holds.

    Raises DataError for rows that cannot be read.
    """
    rows, done = cleaned_file(options)
    lines = []
    for at, row in enumerate(rows[:MOST]):
        personal = PERSONAL * (at in done.redacted)
        rule, reason = done.faults.get(at, (personal, ""))
        turns: list[ReadableTurn] = []
        for group in row.groups:
            turns += readable_turns(group)
        raw = json.dumps(row.raw, indent=1, ensure_ascii=False, default=str)
        why = f"{rule.replace('_', ' ')}: {reason}".removesuffix(": ")
        line = {"where": str(row), "fault": rule, "reason": why, "turns": turns, "raw": raw}
        lines.append({**line, "preview": shortened(turns[0].text) if turns else row.bad})
    faults = {**done.counts, PERSONAL: len(done.redacted.keys() - done.faults.keys())}
    words = counts(groups_of(rows), faults.get("unreadable", 0))
    page = templates(Path(__file__).parent).get_template("browse.html.j2")
    facts = {"name": name_of(options.data), "counts": words, "total": len(rows), "longest": LONGEST}
    write_text(out, page.render(**facts, faults=faults, rows=lines))
    return words
