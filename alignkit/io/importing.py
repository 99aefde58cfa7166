"""Which plugins a command loads: what the environment and the command line say."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path

LEFT_OUT = "ALIGNKIT_NO_PLUGIN"  # a variable: names, separated by commas

# What `--plugin FILE` and `--no-plugin NAME` of this command say.
of_command: ContextVar[tuple[Sequence[Path], Sequence[str]]] = ContextVar("of_command", default=((), ()))


def left_out() -> list[str]:
    """What the environment says is not to be loaded, in any command."""
    return [name.strip() for name in os.environ.get(LEFT_OUT, "").split(",") if name.strip()]
