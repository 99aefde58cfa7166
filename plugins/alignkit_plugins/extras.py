"""Packages that only some users need: the extras of pyproject.toml."""

from __future__ import annotations

import importlib.util
import shlex
import sys

from alignkit import RunFailed


def check_extra(user: str, extra: str, *modules: str) -> None:
    """Raise RunFailed if a module of an extra is not installed.

    user: what needs it, such as `reward 'language'`. extra: its name in pyproject.toml, such as
    `language`.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise RunFailed(f"{user} needs the package {module}\nhelp: {install_command(extra)}")


def install_command(extra: str) -> str:
    """The command that adds an extra to this installation, for this Python."""
    return f"{shlex.quote(sys.executable)} -m pip install 'alignkit[{extra}]'"
