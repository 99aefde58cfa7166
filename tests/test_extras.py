"""The packages of an extra, and the command that installs them."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from alignkit import extras
from alignkit.errors import RunFailed

DECLARED = [
    "torch>=2.9",
    "bitsandbytes>=0.49; platform_system != 'Darwin'",
    "starlette>=0.46; extra == 'serve'",
    "uvicorn>=0.34,<1; extra == 'serve'",
    "ray[data,default]>=2.60; extra == 'ray'",
    "elsewhere>=1; platform_system == 'Nowhere' and extra == 'ray'",
]


@pytest.fixture(autouse=True)
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "requires", lambda name: DECLARED)


def test_the_command_names_the_packages_of_the_extra_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "_pip", lambda: "pip")
    assert extras.install_command("serve") == "pip install 'starlette>=0.46' 'uvicorn<1,>=0.34'"
    assert extras.install_command("ray") == "pip install 'ray[data,default]>=2.60'"


def test_the_pip_is_that_of_this_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a shell without the environment, `pip` would install elsewhere."""
    for folder in ("elsewhere", "a venv"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "pip").touch(mode=0o755)
    python = tmp_path / "a venv" / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", str(tmp_path / "elsewhere"))
    assert extras.install_command("serve").startswith(f"'{python}' -m pip install 'starlette")
    monkeypatch.setenv("PATH", str(python.parent))
    assert extras.install_command("serve").startswith("pip install 'starlette")


def test_a_missing_module_is_named_with_who_needs_it() -> None:
    extras.check_extra("alignkit serve", "serve", "json", "re")
    with pytest.raises(RunFailed, match=r"alignkit serve needs the package no_such\nhelp: .* install 'starlette>="):
        extras.check_extra("alignkit serve", "serve", "json", "no_such")


def test_every_extra_of_the_installed_package_has_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "requires", importlib.metadata.requires)
    for extra in ("json", "label", "language", "lm-eval", "math", "ray", "serve", "web"):
        named = extras.install_command(extra).partition(" install ")[2].replace("'", "").split()
        assert named and all(Requirement(text).specifier for text in named), extra
