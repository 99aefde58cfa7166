"""The kit, the tokens that the template lets a model learn, a run, and mistakes with their
place.
"""

import json
import shutil
from importlib.metadata import entry_points
from pathlib import Path

import alignkit_archive
import pytest

from alignkit import Group, Message, RecipeError, Response
from alignkit.cli import main
from alignkit.host.plugins import load_plugins
from alignkit.testing import check_model_source

HERE = Path(__file__).parent
INSTALLED = any(point.name == "alignkit_archive" for point in entry_points(group="alignkit"))
PLUGIN = [] if INSTALLED else ["--plugin", str(HERE / "alignkit_archive.py")]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The example next to an archive of the model `tiny`."""
    tiny = load_plugins().get("model", "tiny").implementation(tmp_path / "cache")
    shutil.make_archive(str(tmp_path / "small"), "gztar", tiny.parent, tiny.name)
    shutil.copy(HERE / "answers.jsonl", tmp_path)
    return Path(shutil.copy(HERE / "recipe.yaml", tmp_path))


def test_it_conforms(recipe: Path) -> None:
    check_model_source(alignkit_archive.source, path=str(recipe.parent / "small.tar.gz"))


def test_only_the_answers_and_their_ends_are_learned(recipe: Path) -> None:
    from transformers import AutoTokenizer

    from alignkit.tokens.encoder import Encoder

    (recipe.parent / "models").mkdir()
    folder = alignkit_archive.source(recipe.parent / "models", str(recipe.parent / "small.tar.gz"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = alignkit_archive.LAB
    turns = [("user", "red?"), ("assistant", "Yes."), ("user", "Sure?")]
    prompt: tuple[Message, ...] = tuple({"role": role, "content": text} for role, text in turns)
    encoded = Encoder(tokenizer).encode(Group(prompt, (Response("No."),)), 1000)
    assert (
        encoded is not None
        and tokenizer.decode(encoded.prompt) == "Q: red?\nA: Yes.<|im_end|>\nQ: Sure?\nA:"
    )
    assert tokenizer.decode(encoded.responses[0].tokens) == " No.<|im_end|>" and all(
        encoded.responses[0].mask
    )


def test_a_run_learns_from_the_archive(recipe: Path) -> None:
    out = recipe.parent / "run"
    assert main(["run", str(recipe), "--out", str(out), *PLUGIN]) == 0
    template = json.loads((out / "sft" / "stage.json").read_text(encoding="utf-8"))["depends_on"][
        "template"
    ]
    assert template == {"code": alignkit_archive.LAB, "kwargs": {}}
    rows = [
        json.loads(line)
        for line in (out / "sft" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert rows[-1]["loss"] < rows[0]["loss"] - 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.base=archiv://small.tar.gz", "no model 'archiv'"),
        ("model.chat_template=lap", "did you mean 'lab'?"),
    ],
)
def test_mistakes_are_told_with_their_place(
    recipe: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(recipe), override, *PLUGIN]) == RecipeError.exit_code
    assert message in capsys.readouterr().err


def test_what_holds_no_model_is_named(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe.parent / "small.tar.gz").write_bytes(b"no archive")
    assert main(["run", str(recipe), "--out", str(recipe.parent / "run"), *PLUGIN]) != 0
    assert "small.tar.gz cannot be unpacked" in capsys.readouterr().err
