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


def test_a_part_is_filled(generate: ModuleType) -> None:
    before = "above\n<!-- generated: mix -->\nold\n<!-- /generated -->\nbelow\n"
    after = generate.filled(before)
    assert after.startswith(
        "above\n<!-- generated: mix -->\n| key | type | default | meaning |\n|---|---|---|---|\n"
    )
    assert after.endswith("|\n<!-- /generated -->\nbelow\n") and "old" not in after
    assert generate.filled(after) == after


def test_an_algorithm_comes_with_its_stage_defaults(generate: ModuleType) -> None:
    text = generate.part("algorithm dpo")
    assert (
        "| `beta` | number, above 0 | 0.1 |" in text
        and "\nStage defaults: `learning_rate` 5e-5," in text
    )


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
