"""Every example package works from its wheel, in an environment with alignkit's, as its own test
shows.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.net.recipes import ROOT

TEST = ROOT / "tests" / "test_stranger.py"
PACKAGES = {path.name for path in (ROOT / "docs" / "examples").glob("alignkit-*")}
NEEDS = {"alignkit-verifiers"}  # a library that is not in this environment


@pytest.mark.slow
def test_the_tests_of_all_packages_pass_with_their_wheels() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(TEST),
        "-m",
        "slow or not slow",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    counts = {
        word: int(number)
        for number, word in re.findall(r"(\d+) (passed|skipped)", done.stdout.splitlines()[-1])
    }
    assert counts.get("skipped", 0) <= len(NEEDS) and counts["passed"] >= len(PACKAGES - NEEDS), (
        done.stdout[-2000:]
    )
