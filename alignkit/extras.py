"""Packages that only some users need: whether they are installed, and the command that installs them."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import sys
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
