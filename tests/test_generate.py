"""The generated parts of the documentation are those that the code would write today."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


def script(name: str) -> ModuleType:
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    return script("generate")


def test_pages_are_up_to_date() -> None:
    """In a process of its own: what other tests load would be in the tables."""
    command = [sys.executable, "docs/generate.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}run `python docs/generate.py`"


def test_the_charts_of_speed_are_up_to_date() -> None:
    charts = script("make_charts")
    for name, theme in charts.THEMES.items():
        file = ROOT / "docs" / "assets" / f"speed-{name}.svg"
        assert charts.chart(theme) == file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- generated: nothing -->\n<!-- /generated -->\n", "'nothing' cannot be generated"),
        ("<!-- generated: mix -->\n", "not closed"),
    ],
)
def test_wrong_markers(generate: ModuleType, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate.filled(text)
