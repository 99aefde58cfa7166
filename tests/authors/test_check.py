"""`alignkit plugins check`: what it checks, and what it says of a plugin that breaks a rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignkit.cli import main

HOLDS = "a finite number or None per response, in order; the same in any batch or order"
REWARD = '''
from alignkit import Add, Reward, hookimpl

class Even(Reward):
    """1 for each."""
    def score(self, groups):
        return [1.0 for group in groups for _ in group.responses]%s

@hookimpl
def register(add: Add) -> None:
    add("reward", "even", Even, "one for each")
'''


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (REWARD % "", 0, f"reward even: holds: {HOLDS}\n"),
        (
            REWARD.replace('"even"', '"length"') % "",
            0,
            f"reward length of even.py: holds: {HOLDS}\nwarning: reward length: alignkit",
        ),
        (REWARD % " + [2.0]", 3, "reward even: "),
        ("raise KeyError('red')", 2, "registers nothing"),
    ],
)
def test_a_module(
    text: str, code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "even.py").write_text(text, encoding="utf-8")
    assert main(["plugins", "check", str(tmp_path / "even.py")]) == code
    said = capsys.readouterr()
    assert words in said.out + said.err
    assert code < 2 or "red" in said.err or code == 3


def test_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "check", "length", "--options", "{length: {unit: characters}}"]) == 0
    assert "length" in capsys.readouterr().out
    options = "{weighted_sum: {rewards: {a: length}, weights: {a: 1}}}"
    assert main(["plugins", "check", "weighted_sum", "--options", options]) == 0
    assert main(["plugins", "check", "lenght"]) == 2


def test_what_no_kit_checks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = 'add("reader", ".even", alignkit.Reader)\n    add("model", "even", open)\n    '
    text = "import alignkit\n" + REWARD.replace('add("reward"', others + 'add("reward"') % ""
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    assert main(["plugins", "check", str(tmp_path / "mine.py")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"reward even: holds: {HOLDS}",
        "model even: not checked here; test it in a run",
        "reader .even: not checked here; test it by `check_reader` in a test",
    ]
