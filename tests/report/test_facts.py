"""report.json: what it holds, that every key is documented, and which damage is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from made import BEGAN, REPORT, SOURCES, make_run, write_stage

from alignkit.errors import RecipeError
from alignkit_plugins.report.changes import dotted, flat
from alignkit_plugins.report.facts import facts_of
from tests.documented_keys import documented, paths
from tests.rows import write_rows

# Parts whose keys are names of metrics, packages and the like, or are documented elsewhere.
OPEN = """
    evaluations.evaluation stages.summary stages.metrics reproduce.versions reproduce.machine
    reports.blocks data.prompt_characters data.response_characters people.agreement
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def states(facts: dict[str, Any]) -> list[str]:
    return [stage["state"] for stage in facts["stages"]]


def test_what_is_known_is_there(run: Path) -> None:
    facts = facts_of(run)
    assert facts["run"] == {
        "name": "small",
        "folder": str(run),
        "outcome": "done",
        "message": "",
        "started": "2026-09-21T14:13:40Z",
        "ended": "2026-09-21T14:15:20Z",
        "stages": 4,
        "stages_done": 4,
        "seconds": 246.0,
        "peak_memory": "1 GiB",
        "base": "",
    }
    assert facts["next"] == {"told": "", "chat": f"alignkit chat {run / 'align'}"}
    known = facts["reproduce"]
    assert known["command"] == "alignkit run small --out runs/small"
    assert (known["seed"], known["commit"], known["versions"]["torch"]) == (3, "c0ffee", "2.9.0")
    assert states(facts) == ["done"] * 4 and facts["stages"][2]["tokens_per_second"] == 106.5
    source = dict(SOURCES["sft"][0])
    card = source.pop("card")
    source.pop("agreement")
    assert facts["data"] == [{"stage": "sft", **card, **source}]
    assert [(item["reason"], item["rows"], item["of"]) for item in facts["dropped"]] == [
        ("responses truncated at max_length", 18, 60),
        ("bad rows, the first: demos.jsonl:7: no prompt", 1, None),
    ]
    (report,), (verdict,) = facts["reports"], facts["verdicts"]
    assert (report["stage"], report["blocks"]) == ("report", REPORT.plain())
    told = verdict["policy"], verdict["metric"], verdict["outcome"]
    assert told == ("align", "helpful", "mixed")


WARNINGS = """
: tracker 'x' failed
sft: 1 steps were skipped, because their loss or gradient was not finite
sft: 18 responses truncated at max_length (30% of 60)
report: 2 of 20 prompts are training data (2 by sft)
report: helpful and local_judge contradict each other on align: one of them may be fooled
"""


def test_warnings_come_from_everywhere(run: Path) -> None:
    found = [f"{item['stage']}: {item['text']}" for item in facts_of(run)["warnings"]]
    assert set(WARNINGS.strip().splitlines()) < set(found)


def test_every_key_is_documented(run: Path) -> None:
    facts = json.loads(json.dumps(facts_of(run)))
    assert paths(facts, {}, closed=OPEN.split()) == documented("report.json").keys()


# Bad input


def test_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing", tmp_path / ("x" * 5000), tmp_path / "nul\0"):
        with pytest.raises(RecipeError, match="folder"):
            facts_of(folder)


def test_a_run_that_stopped_halfway_says_where(run: Path) -> None:
    message = "error: out of memory\n  in stage 'align'"
    end = {"event": "end", "time": BEGAN + 50, "outcome": "failed", "message": message}
    write_rows(run / "starts.jsonl", [{"event": "start", "time": BEGAN}, end])
    for stage in ("labels", "report"):
        shutil.rmtree(run / stage)
    write_stage(run / "align", "ppo", complete=False, seconds=None)
    facts = facts_of(run)
    assert facts["run"]["outcome"] == "failed" and "out of memory" in facts["run"]["message"]
    assert states(facts) == ["done", "not begun", "begun", "not begun"]
    assert facts["verdicts"] == [] and facts["run"]["stages_done"] == 1


def test_a_run_without_any_result_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "recipe.resolved.yaml").write_text("name: x\nstages: {sft: {algorithm: sft}}\n")
    facts = facts_of(tmp_path)
    assert (facts["run"]["outcome"], states(facts)) == ("incomplete", ["not begun"])


def test_plain_data_are_flattened() -> None:
    found = flat({"a": {"b": [1, {"c": 2}], "d": {}}, "e": None})
    named = {dotted(path): value for path, value in found.items()}
    assert named == {"a.b.0": 1, "a.b.1.c": 2, "e": None}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("sft/stage.json", b"\xff\xfe{\n{}\n"),
        ("align/metrics.jsonl", b"\xff\xfe{\n{}\n"),
        ("report/evaluation.json", b"{}"),
        ("report/samples.jsonl", None),
    ],
)
def test_a_damaged_stage_is_named_and_the_others_are_shown(
    name: str, damage: bytes | None, run: Path
) -> None:
    (run / name).unlink()
    if damage is not None:
        (run / name).write_bytes(damage)
    stage = name.partition("/")[0]
    facts = facts_of(run)
    assert [one["name"] for one in facts["stages"] if one["state"] == "damaged"] == [stage]
    (text,) = [one["text"] for one in facts["warnings"] if str(run / name) in one["text"]]
    assert facts["warnings"][0] == {"stage": stage, "text": text} and "run the recipe again" in text
    assert bool(facts["verdicts"]) == (stage != "report") and facts["run"]["stages_done"] == 3


def test_the_last_line_of_a_killed_process_may_be_unfinished(run: Path) -> None:
    write_stage(run / "align", "ppo", complete=False, files={})
    with (run / "align" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 13, "rew')
    (stage,) = [stage for stage in facts_of(run)["stages"] if stage["name"] == "align"]
    assert stage["metrics"]["kl"]["last"] == 9.0
