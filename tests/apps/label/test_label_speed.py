"""The benchmark of the page runs; how fast the page is, no test says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.apps.label.chromium import needed
from tests.patience import PATIENCE

pytestmark = needed
ROOT = Path(__file__).parents[3]


def test_the_benchmark_of_the_page() -> None:
    command = [sys.executable, "-m", "benchmarks.label_page", "--count", "3", "--decide", "0", "--size", "50"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    change = found["milliseconds from Enter to the next item"]
    assert found["pairs"] == 3 and 0 < change["median"] <= change["most"]
