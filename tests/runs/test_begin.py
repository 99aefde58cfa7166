"""The first lines of a run come at once, and a stage says which of how many it is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from alignkit import RunFailed, cli
from alignkit.io import console
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import Recipe
from alignkit.runs.run import Run, run_recipe
from alignkit.training.collectives import Collectives
from tests.rows import Said, read_rows, run, write_recipe, write_rows

SFT = """
sft: {algorithm: sft, data: demos.jsonl, max_steps: 1}
"""
REPORT = """
report:
  step: evaluate
  policies: [base, sft]
  rewards: [{length: {unit: characters}}]
  prompts: demos.jsonl
  sampling: {max_new_tokens: 4}
"""
MORE = """
align: {algorithm: rejection_sampling, from: sft, prompts: demos.jsonl, reward: {length: {unit: characters}},
        iterations: 2, prompts_per_iteration: 1, rollout: {samples_per_prompt: 4, max_new_tokens: 4}}
labels: {step: judge_pairs, judge: {local_judge: {min_mass: 0}}, prompts: demos.jsonl, policy: sft,
         sampling: {max_new_tokens: 4}}
"""
# Says of each line whether torch was imported before, and ends where it is.
WORDS = """
import sys
from alignkit import cli

class Words:
    def write(self, text):
        mark = f" {'torch' in sys.modules}\\n"
        if "loading torch" in text:
            sys.__stderr__.write(text.rstrip() + mark)
            raise KeyboardInterrupt
        sys.__stderr__.write(text.replace("\\n", mark))

    def __getattr__(self, name):
        return getattr(sys.__stderr__, name)

sys.stderr = Words()
cli.main(sys.argv[1:])
"""


def write(folder: Path, stages: str = SFT + REPORT) -> Path:
    write_rows(folder / "demos.jsonl", [{"prompt": "q", "completion": "a"}])
    return write_recipe(folder, stages, name="short")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write(tmp_path)


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["run", "recipe.yaml", "--out", "out"], ["alignkit 0.1.0: short, 2 stages, out False"]),
        (["chat", "tiny"], []),
    ],
)
def test_the_first_lines_come_before_torch_is_imported(
    recipe: Path, words: list[str], first: list[str]
) -> None:
    command = [sys.executable, "-c", WORDS, *words]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=recipe.parent)
    lines = ran.stderr.splitlines()[: len(first) + 1]
    assert lines == [*first, "loading torch and transformers False"]


def test_stages_are_numbered_and_parts_of_steps_are_counted(
    recipe: Path,
    tmp_path: Path,
    said: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)
    for stages, counted in ((SFT + REPORT, FIRST), (SFT + REPORT + MORE, SECOND)):
        run_recipe(load_recipe(write(tmp_path, stages)), tmp_path / "out")
        lines = said().splitlines()
        assert {*counted.strip().split("\n")} <= {
            re.split(r" \(| loss ", line)[0] for line in lines
        }
    assert "stage 1 of 4" not in " ".join(lines)


FIRST = """
sft: stage 1 of 2, sft
report: stage 2 of 2, evaluate
report: sampling from base 1/1
report: sampling from sft 1/1
report: measuring sft 1/1
"""
SECOND = """
sft: unchanged, reused
align iteration 1/2
align iteration 2/2
labels: responses 1/1
labels: judge 1/1
"""


@pytest.mark.parametrize(
    ("method", "place"),
    [
        ("offline.DatasetTrainer._step", "in step 1 of 1"),
        ("online.RolloutTrainer.learn", "in iteration 1 of 2"),
    ],
)
def test_an_error_names_the_step_or_the_iteration(
    method: str,
    place: str,
    recipe: Path,
    said: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(*arguments: object) -> None:
        raise RunFailed("it failed")

    monkeypatch.setattr(f"alignkit.training.{method}", failing)
    write(recipe.parent, SFT + REPORT + MORE)
    assert cli.main(["run", str(recipe), "--out", str(recipe.parent / "out")]) == 1
    assert said().endswith(f"error: it failed\n  {place}\n")
    assert logged(recipe.parent / "out")[-2:] == ["error: it failed", f"  {place}"]


def test_a_run_that_failed_and_is_killed_while_it_tells_others_is_not_done(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collectives, out = Collectives(), recipe.parent / "out"
    monkeypatch.setattr(collectives, "fail", Mock(side_effect=KeyboardInterrupt))
    monkeypatch.setattr(Run, "execute", Mock(side_effect=RunFailed("it failed")))
    with pytest.raises(KeyboardInterrupt):
        run_recipe(load_recipe(recipe), out, collectives=collectives)
    assert read_rows(out / "starts.jsonl")[-1]["outcome"] == "failed"


def logged(folder: Path) -> list[str]:
    """The lines of run.log without their times."""
    return [
        line.partition("Z ")[2]
        for line in (folder / "run.log").read_text(encoding="utf-8").splitlines()
    ]


def test_the_log_has_all_that_a_run_and_its_resumption_said(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    for _ in range(2):
        assert cli.main(["run", str(recipe), "--out", str(recipe.parent / "out")]) == 0
        out, err = capsys.readouterr()
        lines = [line.rstrip() for line in err.splitlines()]
        end = [line.startswith("done in") for line in lines].index(True)
        said += [*lines[:end], *(line.rstrip() for line in out.splitlines()), *lines[end:]]
    assert logged(recipe.parent / "out") == said
    assert sum(line.startswith("alignkit 0.1.0: ") for line in said) == 2
    assert sum("No clear difference between sft and base" in line for line in said) == 2


WATCH = """
from alignkit import hookimpl

@hookimpl
def run_finished(run, error): raise ValueError("too late")
"""


def test_an_observer_that_fails_at_the_end_is_a_warning_which_is_in_the_log(
    recipe: Path, said: Said
) -> None:
    (recipe.parent / "watch.py").write_text(WATCH, encoding="utf-8")
    write(recipe.parent, SFT)
    out = recipe.parent / "out"
    run(recipe, "--plugin", str(recipe.parent / "watch.py"), out=out)
    expected = "warning: plugin 'watch.py', in `run_finished`: ValueError: too late"
    for lines in (said().splitlines(), logged(out)):
        assert any(line.startswith(expected) for line in lines)
        assert lines[-1].startswith("done in ") and lines[-1].endswith(f"results: {out}")


def test_a_warning_about_plugins_comes_after_the_first_line_and_is_in_the_log(
    recipe: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: Any, **options: Any) -> Recipe:
        arguments[-1]("warning: it is old, token sk-abcdefghijklmnop1234")
        return load_recipe(recipe)

    monkeypatch.setattr("alignkit.recipe.load.load_named", load)
    write(recipe.parent, SFT)
    out = recipe.parent / "out"
    assert cli.main(["run", str(recipe), "--out", str(out)]) == 0
    first, second, *_ = said().splitlines()
    assert first == f"alignkit 0.1.0: short, 1 stage, {out}" and second.startswith("warning: it is")
    assert logged(out)[1] == "warning: it is old, token ***"
