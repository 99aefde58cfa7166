"""The package as its users meet it: notes are written, learned from, and refused with their
place.
"""

import shutil
import sqlite3
from importlib.metadata import entry_points
from pathlib import Path

import alignkit_notes_command
import pytest
from alignkit_notes import Notes, Silence

from alignkit import DataError, Group, MonitorReport, Response
from alignkit.cli import main
from alignkit.testing import check_monitor, check_reader

HERE = Path(__file__).parent
INSTALLED = any(point.name == "alignkit_notes" for point in entry_points(group="alignkit"))
PLUGIN = [] if INSTALLED else ["--plugin", str(HERE / "alignkit_notes.py")]


def answers(*texts: str) -> list[Group]:
    return [Group(({"role": "user", "content": text or "?"},), (Response(text),)) for text in texts]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    for number in range(8):
        alignkit_notes_command.notes(tmp_path / "mine.notes", f"What is {number}?", "A number.")
    return Path(shutil.copy(HERE / "recipe.yaml", tmp_path))


def test_it_conforms(recipe: Path) -> None:
    check_reader(Notes, recipe.parent / "mine.notes")
    check_monitor(Silence)


def test_a_stage_that_falls_silent_ends_with_the_last_policy_that_answered() -> None:
    monitor = Silence(Silence.Options())
    assert monitor.observe(1, answers("red", ""), {}) == MonitorReport({"notes/empty": 0.5}, best=1)
    told = monitor.observe(2, answers(" ", "", "blue"), {})
    assert told.stop == "67% of the answers are empty" and told.best == 1


def test_a_run_learns_from_notes_and_says_how_long_it_took(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(recipe), "--out", str(recipe.parent / "run"), *PLUGIN]) == 0
    assert "notes: sft took " in capsys.readouterr().out
    lines = (
        (recipe.parent / "run" / "align" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    )
    assert all("notes/empty" in line for line in lines)
    assert '"notes": 8' in (recipe.parent / "run" / "sft" / "stage.json").read_text(
        encoding="utf-8"
    )


def test_a_new_note_starts_the_stage_over(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", str(recipe), "--out", str(recipe.parent / "run"), *PLUGIN]
    assert main(words) == 0
    alignkit_notes_command.notes(recipe.parent / "mine.notes", "What is red?", "A color.")
    capsys.readouterr()
    assert main(words) == 0
    assert "sft: changed since the last run" in capsys.readouterr().err


def test_a_note_without_an_answer_is_named(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect(recipe.parent / "mine.notes") as database:
        database.execute("UPDATE notes SET answer = '' WHERE prompt = 'What is 2?'")
    assert main(["check", str(recipe), *PLUGIN]) == DataError.exit_code
    assert "mine.notes:3: the note has no answer" in capsys.readouterr().err


def test_what_is_no_database_is_named(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe.parent / "mine.notes").write_text("no database", encoding="utf-8")
    assert main(["check", str(recipe), *PLUGIN]) == DataError.exit_code
    assert "mine.notes: not a file of notes" in capsys.readouterr().err
