"""The generated parts of the documentation are those that the code would write today."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_up_to_date() -> None:
    """In a process of its own: what other tests load would be in the tables."""
    command = [sys.executable, "docs/generate.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}run `python docs/generate.py`"


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
