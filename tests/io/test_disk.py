"""A full disk, however deep a library reports it."""

from __future__ import annotations

import errno

from alignkit.errors import disk_is_full


def test_a_cause_of_a_cause() -> None:
    one, two, full = RuntimeError("one"), RuntimeError("two"), OSError(errno.ENOSPC, "No space left on device")
    one.__cause__, two.__cause__ = two, one
    assert not disk_is_full(one)
    two.__cause__ = full
    assert disk_is_full(one)
