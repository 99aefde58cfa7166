"""How an inspection looks: marks in a pipe, and nothing that acts on the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignkit import cli
from alignkit_plugins.recipes.check_row import Inspection, Tokens
from tests.rows import write_recipe, write_rows


def shown(found: Inspection) -> str:
    return found.text()


def test_stretches_that_count_have_a_name_in_a_pipe() -> None:
    counts = (False, True, True, False, True)
    text = shown(
        Inspection("row", [], tokens=[Tokens("response", ("a", "b\n", "c", "d", "e"), counts)])
    )
    assert text.splitlines()[-5:] == [
        "response: 5 tokens, 3 learned",
        "  context: a",
        "  learned: b\u23ce|c",
        "  context: d",
        "  learned: e",
    ]
    scored = shown(
        Inspection("row", [], tokens=[Tokens("better", ("a", "b"), (False, True), scored=True)])
    )
    assert scored.splitlines()[-3:] == [
        "better: 2 tokens, scored at the last",
        "  context: a",
        "  scored:  b",
    ]


def test_a_row_does_not_act_on_the_terminal() -> None:
    hostile = "\x1b]0;x\x07[red]y"
    found = Inspection(
        hostile, [(hostile, hostile)], [hostile], [Tokens(hostile, (hostile,), (True,))]
    )
    text = shown(found)
    assert "\x1b" not in text and text.count("[red]y") == 6


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "demos.jsonl", [{"prompt": "Is it?", "completion": "Yes."}])
    recipe = str(write_recipe(tmp_path, {"sft": {"algorithm": "sft", "data": "demos.jsonl"}}))
    assert cli.main(["check", recipe, "sft"]) == 0
    out = capsys.readouterr().out
    assert (
        out.startswith("sft (sft): row 1 of 1")
        and "  learned: Y" in out
        and "<|im_start|>|user|\u23ce|" in out
    )
    assert cli.main(["check", recipe, "stf"]) == 2
    assert "did you mean 'sft'" in capsys.readouterr().err
