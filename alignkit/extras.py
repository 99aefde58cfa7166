"""Packages that only some users need, with the command that installs them; plugins that a command leaves out."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path

from alignkit.errors import RunFailed


def check_extra(user: str, extra: str, *modules: str) -> None:
    """Raise RunFailed if a module of an extra is not installed.

    user: what needs it, such as `reward 'language'`. extra: its name in pyproject.toml, such as `language`.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise RunFailed(f"{user} needs the package {module}\nhelp: {install_command(extra)}")


def install_command(extra: str) -> str:
    """The command that adds an extra to this installation, for this Python: `pip install 'alignkit[serve]'`."""
    return f"{_pip()} install 'alignkit[{extra}]'"  # pip takes the installed alignkit, and asks no index for it


def _pip() -> str:
    """The pip of this Python; by its name if a shell finds it."""
    found = shutil.which("pip")
    if found is not None and Path(found).parent == Path(sys.executable).parent:
        return "pip"
    return f"{shlex.quote(sys.executable)} -m pip"


LEFT_OUT = "ALIGNKIT_NO_PLUGIN"  # a variable: names, separated by commas
# What `--plugin FILE` and `--no-plugin NAME` of this command say.
of_command: ContextVar[tuple[Sequence[Path], Sequence[str]]] = ContextVar("of_command", default=((), ()))


def left_out() -> list[str]:
    """What the environment says is not to be loaded, in any command."""
    return [name.strip() for name in os.environ.get(LEFT_OUT, "").split(",") if name.strip()]
