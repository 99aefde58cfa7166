"""`alignkit run --each`: cells in processes of their own, next to each other, and one table."""

from __future__ import annotations

import json
import sys
import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import alignkit
from alignkit.cli import main
from alignkit.io.results import read_checked, write_checked
from alignkit.recipe import load
from alignkit.runs.services import begin
from alignkit.runs.signals import request_stop
from alignkit_plugins.cells.axes import cells_of
from alignkit_plugins.cells.rows import scores_in
from alignkit_plugins.cells.running import Process
from alignkit_plugins.compare.rows import rows_in
from alignkit_plugins.compare.scores import compare
from alignkit_plugins.evals.examples import LOSS, TOKENS
from tests.rows import Said, cells, read_json, write_rows

pytestmark = pytest.mark.usefixtures("here")

STAGES = """
  sft: {algorithm: sft, data: rows.jsonl, max_steps: 1, max_length: 32}
  more: {algorithm: sft, from: sft, data: rows.jsonl, max_steps: 1, max_length: 32}
  report: {step: evaluate, policies: [sft, more], examples: rows.jsonl, base: false,
    metrics: {long: {reward: length}}, composites: {sum: {long: 1}}, prompts: rows.jsonl,
    sampling: {max_new_tokens: 2}, kl: false}
"""


@pytest.fixture
def recipe() -> Path:
    rows = ({"prompt": f"{word}?", "completion": f"{word}."} for word in "abcd")
    write_rows(Path("rows.jsonl"), rows)
    text = f"name: many\nmodel: {{base: tiny, dtype: float32, lora: {{r: 2}}}}\nstages:{STAGES}"
    Path("recipe.yaml").write_text(text)
    return Path("recipe.yaml")


REFUSED = """
    --each stages.more.max_steps=1,9x | in cell max_steps=9x
    --jobs 2                          | --jobs says which cells run
    --part 1/2                        | add --each KEY=VALUES
"""


@pytest.mark.parametrize(("options", "says"), cells(REFUSED))
def test_what_cannot_run_is_refused_before_anything_runs(
    recipe: Path, said: Said, options: str, says: str
) -> None:
    assert main(["run", str(recipe), *options.split()]) == 2
    assert says in said() and not Path("runs").exists()


def test_cells_share_what_does_not_vary_and_make_one_table(
    recipe: Path, printed: Said, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNKIT_REPORT", "1")
    loaded = load.load_named

    def warns(*given: Any) -> Any:
        if callable(given[-1]):  # it says warnings
            given[-1]("warning: of the loader")
        return loaded(*given)

    monkeypatch.setattr(load, "load_named", warns)
    words = ["run", str(recipe), "--each", "stages.more.max_steps=1,2", "--jobs", "2"]

    def planned() -> list[str]:
        printed()
        each = ["--each", "stages.more.max_steps=1,2,3"]
        assert main(["check", str(recipe), "--plan", *each, "--json"]) == 0
        found = json.loads(printed())["result"]
        assert len(found["cells"]) == 3 and found["seconds"] > 0
        return [one["name"] for one in found["stages"]]

    # What is shared counts once, and what is there not at all
    assert planned() == ["sft", "more", "report", "more", "report", "more", "report"]
    assert main([*words, "--dry-run"]) == 0 and "2 of 2 cells: about" in printed()
    assert not Path("runs").exists()
    said()
    assert main(words) == 0
    assert said().count("of the loader") == 1
    assert planned() == ["more", "report"]
    assert main([*words, "--dry-run"]) == 0 and "0 of 2 cells: about" in printed()
    folder = Path("runs/many/cells")
    one, two = (read_checked(folder / f"max_steps={steps}.json") for steps in (1, 2))
    for stage, same in (("sft", True), ("more", False)):
        keys = [each["stages"][stage]["hash"] for each in (one, two)]
        assert (keys[0] == keys[1]) == same
    first, second = (each["stages"]["more"] for each in (one, two))
    assert 0 < first["tokens"] < second["tokens"]  # by their steps
    assert first["base_parameters"] == second["base_parameters"] > 1000
    # What a row keeps gives the numbers of the evaluation, and the metrics that decide it first
    kept, found = one["evaluations"]["report"], folder / "max_steps=1" / "report"
    rows = compare(scores_in([(kept, {name: name for name in kept["policies"]}, 0)]), "sft")
    written = {
        (row.policy, row.metric): row for row in rows_in(read_json(found / "evaluation.json"))
    }
    assert len(rows) == 8
    assert [*dict.fromkeys(row.metric for row in rows)] == [TOKENS, LOSS, "sum", "long"]
    for row in rows:
        assert replace(row, p=written[row.policy, row.metric].p) == written[row.policy, row.metric]
    logs = [(folder / f"max_steps={steps}.log").read_text() for steps in (1, 2)]
    assert sum("sft: reused from" in log for log in logs) == 1
    printed()
    assert main(["show", "runs/many"]) == 0
    shown = printed()
    assert "2 cells, seed 0" in shown and "the intervals are over prompts only" in shown
    assert "report: runs/many/report.html" in shown
    assert "<h2>Many runs" in Path("runs/many/report.html").read_text()
    assert "differ by that" not in shown
    ours, there = two["stages"]["sft"]["made_on"], "float32 on a slower one"
    for stage in ("sft", "more"):
        two["stages"][stage]["made_on"] = there
    write_checked(folder / "max_steps=2.json", two)
    assert main(["show", "runs/many"]) == 0
    says = f"warning: cells computed in {ours} and {there} differ by that, too: sft, more"
    assert says in " ".join(printed().split())
    begin(load.load_recipe(recipe), Path("runs/many"))  # the recipe itself may run there, too
    assert main(["show", "runs/many", "--csv"]) == 0
    assert printed().startswith("stage,policy,metric,seed,mean,low,high,prompts\nreport,")
    made = alignkit.run(recipe, each={"stages.more.max_steps": [1, 2]}, jobs=2)
    assert [*made] == [
        f"max_steps={n}/{name}" for n in (1, 2) for name in ("sft", "more", "report")
    ]
    assert made["max_steps=2/more"].folder == folder / "max_steps=2" / "more"
    assert main(["show", str(folder / "max_steps=1")]) == 0  # as any run
    # A cell reads the answers of another one's policy that is the same
    assert main([*words[:2], "--each", "stages.more.max_steps=3"]) == 0
    assert "sft: 4 kept answers" in (folder / "max_steps=3.log").read_text()
    # A cell that was changed is not read
    one["seed"] = 7
    (folder / "max_steps=1.json").write_text(json.dumps(one))
    assert main(["show", "runs/many"]) == 4
    # Parts run some of the cells, which are complete already
    said()
    assert main([*words, "--part", "2/2"]) == 4 and "max_steps=2: unchanged (1/1)\n" in said()
    assert main([*words, "--part", "3/2"]) == 2


def test_what_a_cell_found_stays_until_it_is_computed_again(recipe: Path) -> None:
    """Or a command that is killed while it resumes loses cells that were complete."""
    (cell,), found = cells_of(["seed=3..3"]), Path("runs/many/cells/seed=3.json")
    found.parent.mkdir(parents=True)
    found.touch()
    process = Process(cell, [str(recipe)], Path("runs/many"), 1).process
    process.kill()
    process.wait()
    assert found.is_file()


def test_a_cell_has_the_plugins_of_the_command(recipe: Path, said: Said) -> None:
    Path("mine.py").write_text(
        "from alignkit import *\n@hookimpl\ndef register(add):\n"
        "    add('schedule', 'mine', lambda step, total: 1.0)\n"
    )
    words = ["run", str(recipe), "stages.sft.lr_scheduler_type=mine", "--plugin", "mine.py"]
    assert main([*words, "--until", "sft", "--each", "seed=1..1"]) == 0, said()


NOT_OF_CELLS = """
    --prune                    | --prune is for one run
    runs/one runs/many --open  | --open is for one run
    runs/one --csv             | --csv is for cells
    runs/many --csv --prune    | --csv prints numbers and nothing else, not --prune
"""


@pytest.mark.parametrize(("words", "says"), cells(NOT_OF_CELLS))
def test_an_option_that_does_nothing_is_refused(said: Said, words: str, says: str) -> None:
    Path("runs/one").mkdir(parents=True)
    Path("runs/one/recipe.resolved.yaml").write_text("")
    assert main(["show", *words.split()]) == 2
    assert says in said()


def test_cells_that_fail_or_are_stopped_leave_the_others_and_say_how_to_continue(
    recipe: Path, said: Said, printed: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("bad.jsonl").write_text("{}\n")
    words = ["run", str(recipe), "--until", "sft", "--each", "stages.sft.data=bad.jsonl,rows.jsonl"]
    monkeypatch.setattr(sys, "argv", ["alignkit", *words])
    assert main([*words, "--dry-run"]) > 0 and "in cell data=bad.jsonl" in said()
    Path("runs/many/cells").mkdir(parents=True)
    Path("runs/many/cells/data=bad.jsonl.json").touch()  # what it found before it was bad
    assert main(words) == 1
    shown = said()
    assert "failed: data=bad.jsonl" in shown
    assert f"to run them again, and only them: alignkit {' '.join(words)}" in shown
    folder, opened = Path("runs/many/cells"), list[str]()
    assert [file.name for file in folder.glob("*.json")] == ["data=rows.jsonl.json"]
    assert main(["show", "runs/many"]) == 0
    left = f"1 of 2 cells; failed: data=bad.jsonl\nto continue: alignkit {' '.join(words)[:40]}"
    assert left in printed()
    # One that is stopped says how it continues, with quotes
    words[-1] = "stages.sft.data={path: rows.jsonl, limit: 1},{path: rows.jsonl, limit: 2}"
    words += ["--out", "my runs"]
    monkeypatch.setattr(sys, "argv", ["alignkit", *words])
    request_stop("SIGTERM")
    assert main(words) > 0
    resume = f"alignkit run recipe.yaml --until sft --each '{words[-3]}' --out 'my runs'\n"
    assert f"to resume: {resume}" in said()
    assert main(["show", "my runs"]) == 0
    assert printed().startswith("0 of 2 cells; to come: data=")
    monkeypatch.setattr(webbrowser, "open", opened.append)
    assert main(["show", "runs/many", "--prune", "--open"]) == 0
    assert "deleted 0 results, 0 MB; forgot incomplete cells: 1" in printed()
    assert opened == [Path("runs/many/report.html").resolve().as_uri()]
    assert main(["show", "runs/many"]) == 0 and "of 2 cells" not in printed()
    assert main(["show"]) == 0 and "runs/many  cells" in printed()
