"""A full disk, however deep a library reports it."""

from __future__ import annotations

import errno

from alignkit.errors import no_disk


def test_a_cause_of_a_cause() -> None:
    one, two, full = (
        RuntimeError("one"),
        RuntimeError("two"),
        OSError(errno.ENOSPC, "No space left on device"),
    )
    one.__cause__, two.__cause__ = two, one
    assert no_disk(one) is None
    two.__cause__ = full
    assert no_disk(one) is not None


def test_a_drive_that_fails_is_named() -> None:
    found = no_disk(OSError(errno.EIO, "Input/output error", "rows.jsonl"))
    assert "] Input/output error: 'rows.jsonl'" in str(found)
