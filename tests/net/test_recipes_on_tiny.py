"""Every shipped recipe runs on the tiny model by the command of its header."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.net.changes import ROOT
from tests.pages import Reader

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
WAITS = 75  # for people


def command(name: str) -> list[str]:
    """The words of the header's command for the tiny model; those of `smoke`, whose model is
    tiny.
    """
    lines = (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    header = " ".join(line.lstrip("#").strip() for line in lines if line.startswith("#"))
    found = re.search(rf"alignkit run ({name} model\.base=tiny .*?) ?--out \S+", header)
    assert found or name == "smoke", (
        f"recipes/{name}.yaml: its header has no command for the tiny model"
    )
    return shlex.split(found[1]) if found else [name]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs(name: str, tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "alignkit",
        "run",
        *command(name),
        "--out",
        str(tmp_path / "out"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ALIGNKIT_REPORT": "1"}
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    printed = done.stdout + done.stderr
    if name == "people":
        assert done.returncode == WAITS and "alignkit label" in printed, printed
        return
    assert done.returncode == 0 and "Traceback" not in printed, printed
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    Reader(page)
    assert len(page) > 10_000
