"""`make gpu-check` keeps what was measured, whatever a part does; on a simulated device it runs from
end to end.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from torch.utils import backend_registration

from alignkit.io.atomic import write_json
from alignkit_plugins.compare.rows import Row, plain
from benchmarks.gpu_check import PARTS, Here, attempt, intervals, rates, table
from tests.rows import read_rows

ROOT = Path(__file__).parent.parent
TELLS = "import json; open({out!r}, 'a').write(json.dumps({{'part': 'a', 'what': 'x', 'result': '1'}}) + '\\n')"
# What a part does after its first row, its time, and what its last row says
ENDS = [
    ("pass", 60, "1"),
    ("raise ValueError('no room | here')", 60, "failed: exit code 1: ValueError: no room | here"),
    ("import os; os.kill(os.getpid(), 9)", 60, "failed: signal 9: "),
    ("import time; time.sleep(999)", 1, "stopped after "),
]


@pytest.mark.parametrize(("then", "seconds", "said"), ENDS)
def test_a_part_that_fails_leaves_its_rows_and_one_that_says_why(
    then: str, seconds: float, said: str, tmp_path: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    attempt(
        "a",
        [sys.executable, "-c", f"{TELLS.format(out=str(out))}\n{then}"],
        seconds,
        out,
        tmp_path / "log",
    )
    *told, last = read_rows(out)
    assert told[-1]["result"].startswith(said) and last["seconds"] > 0
    # A busy machine may stop the part that hangs before it has begun
    assert said.startswith("stopped") or "| x | 1 |" in table(out)
    assert "no room | here" not in table(out)  # in a table, it would end the cell


def test_the_table_has_the_last_row_about_each_thing(tmp_path: Path) -> None:
    """Also of a file whose last line was cut short."""
    out = tmp_path / "rows.jsonl"
    here = Here("suite", out, tmp_path, short=True)
    for result in ("1 passed", "2 passed"):
        here.tell("tests", result)
    with out.open("a") as file:
        file.write('{"part": "nf4", "wh')
    assert table(out).splitlines()[2:3] == ["| tests | 2 passed |"]


def test_the_quick_start_is_compared_with_the_cells_of_cpus(tmp_path: Path) -> None:
    known = intervals()
    assert all(low <= high for low, high in known.values())
    row = Row("align", "facts right", "metric", {"mean": 0.5})
    others = [replace(row, kind="judge"), replace(row, estimate={"mean": None})]
    rows = [row, *others, replace(row, column="kind")]
    write_json(tmp_path / "evaluation.json", {"results": list(map(plain, rows))})
    (found,) = rates(tmp_path / "evaluation.json")
    assert found == ("align", "facts right", 0.5) and found[:2] in known


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch cannot simulate a device",
)
def test_each_part_runs_on_the_simulated_device(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    words = ["--short", "--simulated", "--seconds", "3000", "--out", str(out)]
    command = [sys.executable, "-m", "benchmarks.gpu_check", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    rows = read_rows(out)
    assert [row["part"] for row in rows if "seconds" in row] == [part.name for part in PARTS]
    failed = [row for row in rows if str(row.get("result")).startswith(("failed", "stopped"))]
    assert not failed, json.dumps(failed, indent=1)
    assert done.stdout.startswith("| what | on the GPU |") and "simulated" in done.stdout
