"""Packages that only some users need: whether they are installed, and the command that installs them."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import sys
from importlib.metadata import requires
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
    """The command that installs the packages of an extra for this Python: `pip install 'starlette>=0.46' ...`.

    It names the packages: `pip install 'alignkit[serve]'` would look for alignkit itself in the package index.
    """
    from packaging.requirements import Requirement

    words = [_pip(), "install"]
    for item in map(Requirement, requires("alignkit") or ()):
        marker, item.marker = item.marker, None
        if marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
            words.append(shlex.quote(str(item)))
    return " ".join(words)


def _pip() -> str:
    """The pip of this Python; by its name if a shell finds it."""
    found = shutil.which("pip")
    if found is not None and Path(found).parent == Path(sys.executable).parent:
        return "pip"
    return f"{shlex.quote(sys.executable)} -m pip"
