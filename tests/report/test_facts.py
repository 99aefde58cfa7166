"""report.json: what it holds, that every key is documented, and which damage is named."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made import BEGAN, REPORT, SOURCES, lines, make_run, write_stage

from alignkit.errors import RecipeError
from alignkit_plugins.report.changes import dotted, flat
from alignkit_plugins.report.facts import facts_of

ROOT = Path(__file__).parents[2]
# Parts whose keys are names of metrics, packages and the like, or are documented elsewhere.
OPEN = (
    "evaluations.evaluation",
    "stages.summary",
    "stages.metrics",
    "reproduce.versions",
    "reproduce.machine",
    "reports.blocks",
    "data.prompt_characters",
    "data.response_characters",
    "people.agreement",
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def test_what_is_known_is_there(run: Path) -> None:
    facts = facts_of(run)
    assert facts["run"] | {"folder": ""} == {
        "name": "small",
        "folder": "",
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
    assert (
        facts["reproduce"]["command"] == "alignkit run small --out runs/small"
        and facts["reproduce"]["seed"] == 3
    )
    assert (
        facts["reproduce"]["commit"] == "c0ffee"
        and facts["reproduce"]["versions"]["torch"] == "2.9.0"
    )
    assert [stage["state"] for stage in facts["stages"]] == ["done"] * 4
    assert facts["stages"][2]["tokens_per_second"] == 106.5
    assert facts["data"] == [
        {
            "stage": "sft",
            **{
                "name": "demos.jsonl",
                "format": "messages",
                "rows": 40,
                "held_out": 8,
                "skipped": 1,
            },
            **{key: value for key, value in SOURCES["sft"][0]["card"].items() if key != "rows"},
        }
    ]
    assert [item["of"] for item in facts["dropped"]] == [60, None]
    assert {item["reason"]: item["rows"] for item in facts["dropped"]} == {
        "responses truncated at max_length": 18,
        "bad rows, the first: demos.jsonl:7: no prompt": 1,
    }
    assert [(one["stage"], one["blocks"]) for one in facts["reports"]] == [
        ("report", REPORT.plain())
    ]
    assert [(one["policy"], one["metric"], one["outcome"]) for one in facts["verdicts"]] == [
        ("align", "helpful", "mixed")
    ]


def test_warnings_come_from_everywhere(run: Path) -> None:
    found = {(item["stage"], item["text"]) for item in facts_of(run)["warnings"]}
    assert ("", "tracker 'x' failed") in found
    assert ("sft", "1 steps were skipped, because their loss or gradient was not finite") in found
    assert ("sft", "18 responses truncated at max_length (30% of 60)") in found
    assert ("report", "2 of 20 prompts are training data (2 by sft)") in found
    assert (
        "report",
        "helpful and local_judge contradict each other on align: one of them may be fooled",
    ) in found


def keys(value: Any, path: str = "") -> set[str]:
    """The paths of all keys, without those of parts that are documented elsewhere."""
    if isinstance(value, list):
        return set().union(*(keys(item, path) for item in value), set())
    if not isinstance(value, dict) or path in OPEN:
        return set()
    places = {key: f"{path}.{key}".lstrip(".") for key in value}
    return set(places.values()).union(*(keys(below, places[key]) for key, below in value.items()))


def test_every_key_is_documented(run: Path) -> None:
    page = (ROOT / "docs" / "plugins" / "api" / "files.md").read_text(encoding="utf-8")
    table = page.split("| `report.json` | meaning |")[1].split("\n\n")[0]
    known = {
        key for line in table.splitlines()[2:] for key in re.findall("`(.+?)`", line.split("|")[1])
    }
    facts = facts_of(run)
    assert keys(json.loads(json.dumps(facts))) == known


def test_it_needs_no_torch(run: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from alignkit_plugins.report.events import "
        "write_report; write_report(Path(sys.argv[1])); "
        "print([n for n in ('torch', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# Bad input


def test_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing", tmp_path / ("x" * 5000), tmp_path / "nul\0"):
        with pytest.raises(RecipeError, match="folder"):
            facts_of(folder)


def test_a_run_that_stopped_halfway_says_where(run: Path) -> None:
    end = {
        "event": "end",
        "time": BEGAN + 50,
        "outcome": "failed",
        "message": "error: out of memory\n  in stage 'align'",
    }
    lines(run / "starts.jsonl", [{"event": "start", "time": BEGAN}, end])
    for stage in ("labels", "report"):
        for file in (run / stage).iterdir():
            file.unlink()
        (run / stage).rmdir()
    write_stage(run / "align", "ppo", complete=False, seconds=None)
    facts = facts_of(run)
    assert facts["run"]["outcome"] == "failed" and "out of memory" in facts["run"]["message"]
    assert [stage["state"] for stage in facts["stages"]] == [
        "done",
        "not begun",
        "begun",
        "not begun",
    ]
    assert facts["verdicts"] == [] and facts["run"]["stages_done"] == 1


def test_a_run_without_any_result_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "recipe.resolved.yaml").write_text("name: x\nstages: {sft: {algorithm: sft}}\n")
    facts = facts_of(tmp_path)
    assert facts["run"]["outcome"] == "incomplete" and facts["stages"][0]["state"] == "not begun"


def test_plain_data_are_flattened() -> None:
    found = flat({"a": {"b": [1, {"c": 2}], "d": {}}, "e": None})
    assert {dotted(path): value for path, value in found.items()} == {
        "a.b.0": 1,
        "a.b.1.c": 2,
        "e": None,
    }


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
    if damage is None:
        (run / name).unlink()
    else:
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
