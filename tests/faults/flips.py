"""Bits that flip, files that end early and files that disappear, in the folder of a finished run
and in the cache.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.faults.case import HELD, LOST, SILENT, UNTIDY, Case, command
from tests.faults.runs import results

FLIPS = 12  # per file


def cases(recipe: Path, whole: dict[str, str], finished: Path) -> list[Case]:
    """Faults in each file of a finished run. The recipe's last stage has changed, so that all
    results are needed.
    """
    found = []
    for file in sorted(path for path in finished.rglob("*") if path.is_file()):
        name = file.relative_to(finished).as_posix()
        if file.name != ".lock":
            for what, content in _damages(file.read_bytes(), random.Random(name)):
                run = _held(recipe, whole, finished, name, content)
                found.append(Case("flip", f"{name}: {what}", run))
    return found


def _damages(data: bytes, chance: random.Random) -> list[tuple[str, bytes | None]]:
    damages: list[tuple[str, bytes | None]] = [("missing", None), ("empty", b"")]
    damages.append(("cut", data[: len(data) // 2]))
    for _ in range(FLIPS if data else 0):
        bit, flipped = chance.randrange(len(data) * 8), bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        damages.append((f"bit {bit} flipped", bytes(flipped)))
    return damages


def _held(
    recipe: Path, whole: dict[str, str], finished: Path, name: str, content: bytes | None
) -> Callable[[Path], tuple[str, str]]:
    def run(folder: Path) -> tuple[str, str]:
        shutil.copytree(finished, folder / "run", symlinks=True)
        file = folder / "run" / name
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        shutil.rmtree((folder / "run" / "report").resolve(), ignore_errors="report-" in name)
        said = command(["run", str(recipe), "--out", str(folder / "run")])
        if not said.tidy:
            return UNTIDY, said.text
        if said.code:
            again = command(["run", str(recipe), "--out", str(folder / "run")])
            return (LOST if again.code else HELD), said.text
        return (HELD if results(folder / "run") == whole else SILENT), said.text

    return run
