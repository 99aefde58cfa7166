"""Context variables that have a value for a while: what a forward pass reads without being given
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


@contextmanager
def setting(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    """Give a variable this value inside, and bring back the one before."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
