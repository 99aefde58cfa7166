"""What a stage leaves behind in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignkit import cli
from alignkit.report import Report, Table

REPORT = Report(["notes", Table("means", ["", "sft"], [["helpful", "0.1 [0.0, 0.2]"]])])
RECIPE = """
model: {base: tiny}
stages:
  report: {step: reported}
"""
PLUGIN = """
from alignkit import Artifact, Step, hookimpl
from alignkit.report import Report, Table

class Reported(Step):
    def run(self, context):
        columns = [f"policy {i}" for i in range(5)]
        return Artifact(report=Report([Table("", ["", *columns], [["r"] + ["0.12 [0.01, 0.23]"] * 5])]), text="next: x")

@hookimpl
def register(add):
    add("step", "reported", Reported, "a report")
"""


def test_a_step_reports_to_a_pipe_in_80_columns_also_when_it_is_reused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "plugin.py").write_text(PLUGIN, encoding="utf-8")
    command = [
        "run",
        str(tmp_path / "recipe.yaml"),
        "--plugin",
        str(tmp_path / "plugin.py"),
        "--out",
    ]
    assert cli.main([*command, str(tmp_path / "out")]) == 0
    first = capsys.readouterr().out
    assert (
        first
        == (tmp_path / "out" / "report" / "report.txt").read_text(encoding="utf-8") + "\nnext: x\n"
    )
    assert (tmp_path / "out" / "report" / "report.md").read_text(encoding="utf-8").count(
        "0.12"
    ) == 5
    assert max(map(len, first.splitlines())) <= 80 and first.count("0.12") == 5
    assert cli.main([*command, str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == first
