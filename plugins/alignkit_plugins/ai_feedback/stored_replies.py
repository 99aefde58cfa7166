"""Whether judges and rewards on servers may be asked, or only what they have replied before may be
used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_depth: list[None] = []


def asking_is_allowed() -> bool:
    """Whether requests may be sent."""
    return not _depth


@contextmanager
def stored_replies_only() -> Iterator[None]:
    """Let no request be sent, and so nothing be paid for, while the block runs."""
    _depth.append(None)
    try:
        yield
    finally:
        _depth.pop()
