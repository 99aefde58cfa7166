"""A file without the rows that break a rule, and a list of those: both whole, or not there at
all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignkit.report import Table
from alignkit_plugins.data import rules
from alignkit_plugins.data.found_rows import (
    Row,
    as_json,
    check_target,
    read_rows,
    removed_file,
    written,
)
from alignkit_plugins.data.rules import Fault, Rules, redacted, removed_counts

UNREADABLE = "unreadable"  # in the list of what was left out: no rule, but the format's


def clean(options: Rules, out: Path) -> Table:
    """Write the rows that are left, in the layout that they had, and next to it what was left out,
    row by row.

    options: of the step `clean`, whose `data` is read. Returns the numbers. Raises DataError if no
    row is left.
    """
    spec = options.data  # type: ignore[attr-defined]
    check_target(out, spec)
    read = read_rows(spec)
    found = faults(read.rows, options)
    counts = removed_counts(found, len(read.rows), read.name)
    changed = 0
    with written(removed_file(out)) as removed, written(out) as kept:
        for at, row in enumerate(read.rows):
            clean = redacted(row.raw) if options.personal else row.raw
            if at in found:
                rule, reason = found[at]
                reason = redacted(reason) if options.personal else reason
                line = {
                    "file": row.file,
                    "row": row.number,
                    "rule": rule,
                    "reason": reason,
                    "data": clean,
                }
                removed.write(as_json(line))
            else:
                changed += clean != row.raw
                kept.write(as_json({"text": clean} if isinstance(clean, str) else clean))
    left = len(read.rows) - len(found)
    title = f"{out}: {left:,} of {len(read.rows):,} rows; {removed_file(out).name} says why"
    return rules.table(title, counts, left, changed, read.unread)


def faults(rows: Sequence[Row], options: Rules) -> dict[int, Fault]:
    """Why rows are left out, by their places."""
    held_out = read_rows(options.against).rows if options.against else ()
    found = {at: Fault(UNREADABLE, row.bad) for at, row in enumerate(rows) if row.bad}
    return found | options.faults(
        [row.groups for row in rows], rows, [row.groups for row in held_out]
    )
