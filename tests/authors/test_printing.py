"""Lines that a terminal would break within words."""

import pytest

from alignkit_plugins.command_line.printing import print_lines


def test_only_a_terminal_gets_other_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = "words " * 20 + "words"
    print_lines(text)
    assert capsys.readouterr().out == f"{text}\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_lines(text)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60 and set(" ".join(lines).split()) == {"words"}
