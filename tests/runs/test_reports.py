"""What a stage leaves behind in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rows import run, write_recipe

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
    (tmp_path / "plugin.py").write_text(PLUGIN, encoding="utf-8")
    recipe = write_recipe(tmp_path, {"report": {"step": "reported"}})
    out = run(recipe, "--plugin", str(tmp_path / "plugin.py"))
    first = capsys.readouterr().out
    text, markdown = (
        (out / "report" / f"report.{kind}").read_text(encoding="utf-8") for kind in ("txt", "md")
    )
    assert first == text + "\nnext: x\n" and markdown.count("0.12") == 5
    assert max(map(len, first.splitlines())) <= 80 and first.count("0.12") == 5
    run(recipe, "--plugin", str(tmp_path / "plugin.py"))
    assert capsys.readouterr().out == first
