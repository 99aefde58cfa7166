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
    for file in sorted(
        path for path in finished.rglob("*") if path.is_file() and path.name != ".lock"
    ):
        name = file.relative_to(finished).as_posix()
        size, chance = file.stat().st_size, random.Random(name)
        places = sorted({chance.randrange(size * 8) for _ in range(FLIPS)}) if size else []
        damages: list[tuple[str, Callable[[bytes], bytes | None]]] = [
            (f"bit {bit} of {name} flipped", lambda data, bit=bit: _flipped(data, bit))
            for bit in places
        ]
        damages += [
            (f"{name} cut", lambda data: data[: len(data) // 2]),
            (f"{name} empty", lambda data: b""),
            (f"{name} missing", lambda data: None),
        ]
        found += [
            Case("flip", label, _held(recipe, whole, finished, name, damage))
            for label, damage in damages
        ]
    return found


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _held(
    recipe: Path,
    whole: dict[str, str],
    finished: Path,
    name: str,
    damage: Callable[[bytes], bytes | None],
) -> Callable[[Path], tuple[str, str]]:
    def run(folder: Path) -> tuple[str, str]:
        shutil.copytree(finished, folder / "run", symlinks=True)
        file = folder / "run" / name
        content = damage(file.read_bytes())
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        shutil.rmtree((folder / "run" / "report").resolve(), ignore_errors="report-" in name)
        said = command(["run", str(recipe), "--out", str(folder / "run")])
        if said.code != 0:
            again = command(["run", str(recipe), "--out", str(folder / "run")])
            return (
                LOST if said.tidy and again.code else UNTIDY if not said.tidy else HELD
            ), said.text
        return (HELD if results(folder / "run") == whole else SILENT), said.text

    return run
