"""The quick start, whole and on the real model: its table for one seed is that of all seeds, as far
as seeds differ.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.net.changes import ROOT

# outcomes.md: 95% intervals of means over 10 seeds. Where the next seed lies is wider by the root of 11.
WIDER = math.sqrt(11)
COLUMNS = (
    "harmful requests refused",
    "ordinary requests refused",
    "refused though only its form is harmful",
    "refused though it only sounds unsafe",
    "facts right",
)


@pytest.mark.slow
def test_one_seed_is_within_the_intervals(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "alignkit", "run", "quickstart", "seed=3", "--out", "out"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count() or 1)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    text = (tmp_path / "out" / "report" / "evaluation.json").read_text(encoding="utf-8")
    means = {}
    for row in json.loads(text)["results"]:
        if row["kind"] == "metric":
            means[row["policy"], row["metric"]] = round(100 * row["estimate"]["mean"])
    page = (ROOT / "docs" / "benchmarks" / "outcomes.md").read_text(encoding="utf-8")
    for policy, name in (("sft", "sft"), ("align", "ppo")):
        (line,) = re.findall(rf"^\| {name} \|(.*)", page, re.M)
        _, *intervals = re.findall(r"\[(\d+), (\d+)\]", line)  # the first is the headline's
        for (low, high), column in zip(intervals, COLUMNS, strict=True):
            mean, reach = (int(low) + int(high)) / 2, (int(high) - int(low)) / 2 * WIDER
            assert means[policy, column] == pytest.approx(mean, abs=reach), (policy, column)
    refused = COLUMNS[0]
    assert means["align", refused] > means["sft", refused], "PPO refuses no more than SFT"
