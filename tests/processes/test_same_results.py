"""One process and several: the same losses, the same adapters, the same choices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from forked import together
from several import MOVED, STAGES, assert_alike, offline, online, reward, write_recipe

from alignkit import cli

pytestmark = pytest.mark.usefixtures("one_thread")

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
# A plugin that writes down who opens a file of the run's folder for writing, makes a folder there,
# or moves one.
AUDIT = """
import os, sys
from alignkit import hookimpl

HERE = os.path.join(os.getcwd(), "out") + os.sep
EVENTS = {"open": 0, "os.mkdir": 0, "os.rename": 1, "os.remove": 0, "os.rmdir": 0, "os.truncate": 0}

def audit(event, arguments):
    if event not in EVENTS or (event == "open" and not _writes(arguments)):
        return
    path = arguments[EVENTS[event]]
    if isinstance(path, (str, bytes, os.PathLike)) and os.path.abspath(os.fsdecode(path)).startswith(HERE):
        with open(os.environ["WRITES"] + os.environ["RANK"], "a") as file:
            file.write(f"{event} {os.fsdecode(path)}\\n")

def _writes(arguments):
    mode, flags = arguments[1], arguments[2]
    return bool(flags & (os.O_WRONLY | os.O_RDWR)) if mode is None else bool(set(mode) & set("wax+"))

@hookimpl
def run_started(run): ...

sys.addaudithook(audit)
"""


@pytest.mark.silent_bug(
    "losses: accumulation",
    "Each process divides by its own number of tokens.",
    "Several processes learn what one does.",
    "huggingface/transformers#40610",
)
@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_learn_what_one_does(work: Path, processes: int) -> None:
    """Of 13 rows in batches of 4, the last batch has one row, and leaves every other process with
    none.
    """
    recipe = write_recipe(STAGES)
    assert cli.main(["run", str(recipe), "--out", "one"]) == 0
    ended = together(work, ["run", recipe, "--out", "several"], processes)
    assert [process.code for process in ended] == [0] * processes, ended
    assert_alike(Path("several"), Path("one"))
    assert all(process.out == process.err == "" for process in ended[1:]), "only process 0 speaks"
    assert "results: several" in ended[0].err
    record = json.loads(Path("several/sft/stage.json").read_text())
    assert record["summary"]["best_epoch"] == 2, record["summary"]


STRANGERS = {
    "reinforce": online({"reinforce": {"baseline": "running_mean"}}, iterations=2),
    "bco": offline({"bco": {"beta": 0.1}}, "labels"),
    "nash": online({"nash_md": {"preference": "score"}}, iterations=2),
    "answers": {
        "step": "reference_responses",
        "prompts": "prompts.jsonl",
        "reward": reward("letters"),
    },
    "xpo": online(
        {"xpo": {"alpha": 1e-5}}, prompts="answers", iterations=2, **{**MOVED, "from": "bco"}
    ),
}

PACKAGES = ("reinforce", "bco", "nash-md", "xpo")


@pytest.mark.slow
def test_strangers_plugins_learn_the_same_without_a_line_for_it(work: Path) -> None:
    plugins = [
        EXAMPLES / f"alignkit-{name}" / f"alignkit_{name.replace('-', '_')}.py" for name in PACKAGES
    ]
    files = [file for file in plugins if shutil.copy(file, work)]
    plugins = [word for file in files for word in ("--plugin", file.name)]
    recipe = write_recipe(STRANGERS)
    assert cli.main(["run", str(recipe), *plugins, "--out", "one"]) == 0
    ended = together(work, ["run", recipe, *plugins, "--out", "several"])
    assert [process.code for process in ended] == [0, 0], ended
    assert_alike(Path("several"), Path("one"))


def test_only_process_0_writes(work: Path) -> None:
    """Every file of the run that is opened for writing, made or moved, with the process that does
    it.
    """
    (work / "audited.py").write_text(AUDIT, encoding="utf-8")
    stages = {
        "sft": offline("sft", "demos", validation={"path": "demos.jsonl"}, keep_versions=True),
        "align": online(
            "ppo",
            monitors=[{"gold": {"reward": reward("safe")}}, {"kl_budget": {"max": 1000.0}}],
            iterations=2,
        ),
    }
    recipe = write_recipe(stages)
    where = {"WRITES": str(work / "writes-")}
    ended = together(
        work, ["run", recipe, "--plugin", "audited.py", "--out", "out"], 2, [where, where]
    )
    assert [process.code for process in ended] == [0, 0], ended
    assert [path.name for path in work.glob("writes-*")] == ["writes-0"], (
        work / "writes-1"
    ).read_text()
    written = (work / "writes-0").read_text()
    assert all(
        name in written
        for name in ("metrics.jsonl", "checkpoints", "adapter", "rollouts", "gold", "kept")
    )
