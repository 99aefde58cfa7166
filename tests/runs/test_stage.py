"""What a stage leaves in its record, and how its problems are gathered."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from alignkit.contract.step import Artifact
from alignkit.errors import PluginError, Problem, RunFailed
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import Run
from alignkit.runs.stage import Problems
from tests.rows import write_recipe


@pytest.fixture
def run(tmp_path: Path) -> Run:
    recipe = write_recipe(tmp_path, "s: {algorithm: reward_model, data: pairs.jsonl}")
    return Run(load_recipe(recipe), tmp_path / "run")


def test_the_record(run: Run) -> None:
    stage, parts = run.stages["s"], {"versions": {"torch": "2"}, "seed": 0}
    stage._bad_rows["pairs.jsonl:1: no"] = None
    made = Artifact(summary={"groups": 1}, policy="s@2", text="told")
    wanted = yaml.safe_load("""
    complete: true
    name: s
    plugin: reward_model
    log_odds: true
    seconds: 1.3
    summary: {groups: 1, bad_rows: ["pairs.jsonl:1: no"]}
    policy: s@2
    text: told
    report: null
    data: []
    versions: {torch: "2"}
    """)
    assert stage.record(1.26, made, parts) == {**wanted, "depends_on": parts}


def test_each_problem_is_told_once_and_a_bug_that_follows_is_not(run: Run) -> None:
    problems, bug = Problems(run.recipe), PluginError("a bug")
    for error in (RunFailed("it is bad"), RunFailed("stage 's': it is bad"), bug):
        with problems.gathering("s"):
            raise error
    problems.add([Problem("one"), Problem("two")])
    assert [each.message for each in problems.problems] == ["stage 's': it is bad", "one", "two"]
    with pytest.raises(PluginError), Problems(run.recipe).gathering("s"):
        raise bug
