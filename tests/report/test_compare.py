"""Comparisons: what differs is named, and runs of different recipes have one, too."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from made import align_rows, make_run

from alignkit.cli import main
from alignkit_plugins.report.show import compared


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    changed = [{**row, "reward": 2 * row["reward"]} for row in align_rows()]
    second = make_run(tmp_path / "b" / "run", {"align": changed})
    recipe = second / "recipe.resolved.yaml"
    recipe.write_text(
        recipe.read_text().replace("epochs: 2", "epochs: 3").replace("labels:", "others:")
    )
    return [make_run(tmp_path / "a" / "run"), second]


def test_what_differs_is_named(runs: list[Path]) -> None:
    text = compared(runs).text(100)
    assert re.search(r"stages\.sft\.epochs +2 +3\n", text) and "stages.sft.data" not in text
    assert re.search(
        r"^align +reward 1.91 -> 3.11 on .* +reward 3.82 -> 6.21 on ", text, re.MULTILINE
    )
    assert re.search(r"stages\.labels\.step +judge_pairs +-\n", text)
    assert re.search(r"align: local_judge +31% \[22, 40\] +31% \[22, 40\]", text)
    assert re.search(r"align: helpful +1\.095 \[1\.067, 1\.123\] +1\.095 \[1\.067, 1\.123\]", text)
    assert "versions and machines are equal" in text


def test_a_long_name_makes_no_table_wider_than_the_terminal(runs: list[Path]) -> None:
    recipe = runs[1] / "recipe.resolved.yaml"
    recipe.write_text(recipe.read_text().replace("name: small", f"name: {'long-' * 20}"))
    assert max(map(len, compared(runs).text(80).splitlines())) <= 80


def test_runs_without_anything_in_common(runs: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "recipe.resolved.yaml").write_text(
        "name: other\nseed: 1\nstages: {dpo: {algorithm: dpo}}\n"
    )
    text = compared([runs[0], other]).text(80)
    assert "stages.dpo.algorithm" in text and "incomplete" in text
    (other / "recipe.resolved.yaml").write_text(
        (runs[0] / "recipe.resolved.yaml").read_text().replace("sft", "dpo")
    )
    assert "the recipes are equal" not in compared([runs[0], other]).text(80)


def test_a_terminal_with_another_encoding_gets_what_it_can_show(runs: list[Path]) -> None:
    command = [sys.executable, "-m", "alignkit", "show", *map(str, runs)]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, check=True, env=environment)
    assert b"\n????" in done.stdout and b"1.095 [1.067, 1.123]" in done.stdout


def test_the_command(runs: list[Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["show", *map(str, runs)]) == 0
    assert "what differs in the recipes" in capsys.readouterr().out
    assert main(["show", str(runs[0])]) == 0
    assert "align is better than sft" in capsys.readouterr().out
    assert main(["show", str(runs[0]), str(tmp_path / "none")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
