"""The first lines of a run come at once, and a stage says which of how many it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignkit import RunFailed, cli
from alignkit.io import console
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import Recipe
from alignkit.runs.run import Run, run_recipe
from alignkit.runs.services import begin
from alignkit.training.collectives import Collectives
from tests.rows import Said, run, write_recipe, write_rows

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
FIRST = """
import sys
from alignkit import cli
import alignkit.io.console as console

class Reporter(console.Reporter):
    def say(self, text):
        print(text, "torch" in sys.modules, file=sys.stderr)
        if "torch" in text:
            raise KeyboardInterrupt

console.Reporter = Reporter
cli.main(sys.argv[1:])
"""
WORDS = """
import sys
from alignkit import cli

class Words:
    def write(self, text):
        loading = "torch" in text
        sys.__stderr__.write(f"{text} {'torch' in sys.modules}\\n" if loading else text)
        if loading:
            raise KeyboardInterrupt

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


def test_the_first_line_names_version_recipe_stages_and_folder(recipe: Path, said: Said) -> None:
    begin(load_recipe(recipe), Path("runs/short"))
    assert said() == "alignkit 0.1.0: short, 2 stages, runs/short\n"
    begin(load_recipe(recipe, ["~stages.report"]), Path("x"))
    assert said() == "alignkit 0.1.0: short, 1 stage, x\n"


def test_the_first_lines_come_before_torch_is_imported(recipe: Path) -> None:
    command = [sys.executable, "-c", FIRST, "run", str(recipe), "--out", str(recipe.parent / "out")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.stderr.splitlines()[:2] == [
        f"alignkit 0.1.0: short, 2 stages, {recipe.parent / 'out'} False",
        "loading torch and transformers False",
    ]


def test_chat_says_what_it_loads_before_torch_is_imported(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORDS, "chat", "tiny"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.stderr.splitlines()[0] == "loading torch and transformers False"


def test_stages_are_numbered_and_parts_of_steps_are_counted(
    recipe: Path,
    tmp_path: Path,
    said: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)
    run_recipe(load_recipe(recipe), tmp_path / "out")
    lines = said().splitlines()
    assert lines[0].startswith("alignkit 0.1.0: short, 2 stages, ")
    assert "sft: stage 1 of 2, sft" in lines and "report: stage 2 of 2, evaluate" in lines
    counted = [line.split(" (")[0] for line in lines]
    for line in ("sampling from base 1/1", "sampling from sft 1/1", "measuring sft 1/1"):
        assert f"report: {line}" in counted
    run_recipe(load_recipe(write(tmp_path, SFT + REPORT + MORE)), tmp_path / "out")
    again = said()
    assert "sft: unchanged, reused" in again and "stage 1 of 4" not in again
    counted = [line.split(" loss ")[0].split(" (")[0] for line in again.splitlines()]
    for line in (
        "align iteration 1/2",
        "align iteration 2/2",
        "labels: sample 1/1",
        "labels: judge 1/1",
    ):
        assert line in counted


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
    class Waits(Collectives):
        def fail(self, error: BaseException) -> None:
            raise KeyboardInterrupt

    def failed(self: Run) -> None:
        raise RunFailed("it failed")

    monkeypatch.setattr(Run, "execute", failed)
    out = recipe.parent / "out"
    with pytest.raises(KeyboardInterrupt):
        run_recipe(load_recipe(recipe), out, collectives=Waits())
    last = (out / "starts.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    assert json.loads(last)["outcome"] == "failed"


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


def test_an_observer_that_fails_at_the_end_is_a_warning_which_is_in_the_log(
    recipe: Path, said: Said
) -> None:
    watch = (
        "from alignkit import hookimpl\n"
        "\n"
        "@hookimpl\n"
        "def run_finished(run, error): raise ValueError('too late')\n"
    )
    (recipe.parent / "watch.py").write_text(watch, encoding="utf-8")
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
        arguments[2]("warning: it is old, token sk-abcdefghijklmnop1234")
        return load_recipe(recipe)

    monkeypatch.setattr(cli, "load", load)
    write(recipe.parent, SFT)
    assert cli.main(["run", str(recipe), "--out", str(recipe.parent / "out")]) == 0
    assert said().splitlines()[1].startswith("warning: it is old")
    assert logged(recipe.parent / "out")[1] == "warning: it is old, token ***"
