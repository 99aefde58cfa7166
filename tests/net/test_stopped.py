"""Killed anywhere, a run ends with the same bytes; a swap is one line; another folder reuses what
is done.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.net.recipes import NET

RECIPE = NET / "now" / "stopped.yaml"
# The command line in a process that counts the files that it puts in place, and dies when it would
# put the Nth.
COUNTING = """
import os, signal, sys
count, last = 0, int(sys.argv[1])
def counting(put):
    def replace(*args, **kwargs):
        global count
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return put(*args, **kwargs)
    return replace
os.replace, os.rename = counting(os.replace), counting(os.rename)
from alignkit.cli import main
code = main(sys.argv[3:])
open(sys.argv[2], "w").write(str(count))
sys.stdout.flush()
os._exit(code)
"""
# Shares of what a run puts in place: before PPO learns; SFT's first checkpoint, in its adapter, at
# its end; PPO's last checkpoint, in its adapter.
PLACES = (0.14, 0.35, 0.48, 0.64, 0.72, 0.8)
AGAIN = 12  # most files that are put in place twice
pytestmark = pytest.mark.slow  # tests/test_resume.py kills a run in `make test`
TIMES = ("seconds", "time", "tokens_per", "memory")


class Runs:
    """Runs of the recipe that share their model."""

    def __init__(self, folder: Path):
        self.folder = folder

    def run(
        self, out: Path, *overrides: str, last: int = 0, code: int = 0, reuse: str = "0"
    ) -> int:
        """Run in a process that dies when it puts the file number `last` in place; gives how many
        it put.

        What it printed is in `self.printed`.
        """
        count = out.parent / f"{out.name}.count"
        variables = {
            "OMP_NUM_THREADS": "1",
            "ALIGNKIT_CACHE": str(self.folder / "cache"),
            "ALIGNKIT_REUSE": reuse,
        }
        command = [
            sys.executable,
            "-c",
            COUNTING,
            str(last),
            str(count),
            "run",
            str(RECIPE),
            "--out",
            str(out),
        ]
        done = subprocess.run(
            [*command, *overrides],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **variables},
        )
        self.printed = done.stdout + done.stderr
        assert done.returncode == code, self.printed
        return int(count.read_text(encoding="utf-8")) if code == 0 else last


def results(out: Path) -> dict[str, Any]:
    """What must be the same: weights and rollouts to the byte, and metrics without times."""
    files = [*out.glob("*/adapter/*.safetensors"), *out.glob("*/rollouts/*.jsonl")]
    found: dict[str, Any] = {
        str(file.relative_to(out)): file.read_bytes() for file in sorted(files)
    }
    lines = "".join(
        file.read_text(encoding="utf-8") for file in sorted(out.glob("*/metrics.jsonl"))
    )
    rows = [json.loads(line) for line in lines.splitlines()]
    found["metrics"] = [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in rows]
    return found


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Runs, Path, int]:
    """The recipe, a run that nothing disturbed, and how many files that put in place; shared by
    parallel tests.
    """
    # Of this worker, whose parent is that of the whole test run
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "stopped"
    folder.mkdir(exist_ok=True)
    made = Runs(folder)
    done = folder / "count"
    with FileLock(str(folder / "lock")):
        if not done.exists():
            # Makes the model, which is no part of a run
            made.run(folder / "warm", last=1, code=-signal.SIGKILL)
            done.write_text(str(made.run(folder / "whole")), encoding="utf-8")
    return made, folder / "whole", int(done.read_text(encoding="utf-8"))


@pytest.mark.parametrize("share", PLACES)
def test_killed_and_resumed(runs: tuple[Runs, Path, int], tmp_path: Path, share: float) -> None:
    made, whole, count = runs
    made.run(tmp_path / "out", last=int(share * count), code=-signal.SIGKILL)
    again = made.run(tmp_path / "out")
    assert again + int(share * count) <= count + AGAIN, (
        "what was done before the kill was done again"
    )
    assert results(tmp_path / "out") == results(whole)


def test_another_algorithm_is_one_line_and_back(
    runs: tuple[Runs, Path, int], tmp_path: Path
) -> None:
    made, whole, _ = runs
    out = Path(shutil.copytree(whole, tmp_path / "out", symlinks=True))
    before, adapter = results(out), "adapter/adapter_model.safetensors"
    sft = (out / "sft" / adapter).stat()
    made.run(out, "stages.align.algorithm=rejection_sampling")
    # Side by side
    assert "align@rejection_sampling" in made.printed and "align@ppo" in made.printed
    after, swapped = (out / "sft" / adapter).stat(), results(out)
    assert (sft.st_mtime_ns, sft.st_ino) == (after.st_mtime_ns, after.st_ino), (
        "sft was trained again"
    )
    assert swapped[f"align/{adapter}"] != before[f"align/{adapter}"]
    assert made.run(out) <= AGAIN, "what was there was trained again"
    assert results(out)[f"align/{adapter}"] == before[f"align/{adapter}"]


def test_another_folder_reuses_what_is_done(runs: tuple[Runs, Path, int]) -> None:
    made, whole, count = runs
    second = whole.with_name("second")
    again = made.run(second, reuse="1")
    assert again < count / 2, f"the stages ran again:\n{made.printed}"
    wanted, found = results(whole), results(second)
    adapters = [name for name in wanted if name.endswith(".safetensors")]
    assert {name: found[name] for name in adapters} == {name: wanted[name] for name in adapters}
