"""Lines that a terminal would break within words."""

import pytest

from alignkit_apps.catalog.printing import fitted, print_lines


@pytest.mark.parametrize("width", [24, 60, 80])
def test_words_and_numbers_stay_whole(width: int) -> None:
    text = "read data/demos.jsonl: messages (recognized), 40 rows, 8 held out"
    lines = fitted(text, width)
    assert " ".join(" ".join(lines).split()) == text and max(map(len, lines)) <= width
    assert all(line.startswith("  ") for line in lines[1:])


def test_a_row_continues_below_its_text() -> None:
    assert fitted("  better  It depends on you.", 20) == ["  better  It depends", "          on you."]
    assert fitted("  better  It depends.", 40) == ["  better  It depends."]


def test_only_a_terminal_gets_other_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = "word " * 20
    print_lines(text)
    assert capsys.readouterr().out == f"{text}\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_lines(text)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60


def test_a_long_name_leaves_room_for_its_text() -> None:
    lines = fitted(f"  {'n' * 40}  some words", 30)
    assert max(map(len, lines)) <= 30 and len(lines) < 5 and lines[-1].endswith("some words")
