"""The generated parts of the documentation are those that the code would write today."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_up_to_date(generate: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    code = generate.main(["--check"])
    assert code == 0, f"{capsys.readouterr().out}run `python docs/generate.py`"


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
