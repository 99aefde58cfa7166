"""Finished stages of other runs, reused by their hash: a second `--out` trains nothing again that a first one has.

The files are linked where the file system can, and else copied. They appear under the stage's name once all of them
are there and have their checksums, so neither a killed process nor a damaged result leaves a part of a stage.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from alignkit.io.atomic import NEW, make_folder, move_folder, sync_folder
from alignkit.io.stage_results import EARLIER, read_record
from alignkit.recipe.schema import Recipe
from alignkit.runs.files import AGREEMENT, RECIPE
from alignkit.runs.stage_store import StageStore, damage_of

SWITCH = "ALIGNKIT_REUSE"  # 0: a run reuses only its own stages


def other_runs(folder: Path, recipe: Recipe) -> list[Path]:
    """The runs whose stages a run in this folder may reuse: `runs/NAME`, and those next to it."""
    if os.environ.get(SWITCH) == "0":
        return []
    near = sorted(path.parent for path in folder.absolute().parent.glob(f"*/{RECIPE}"))
    default = Path("runs") / recipe.name
    found = {path.resolve(): path for path in (*near, default) if (path / RECIPE).is_file()}
    found.pop(folder.resolve(), None)
    here = Path.cwd()  # a user writes a path below it as relative
    return [path.relative_to(here) if path.is_relative_to(here) else path for path in found.values()]


def has_stages(runs: Sequence[Path], stages: Sequence[str]) -> bool:
    """Whether a run has a result of one of these stages, for any settings."""
    places = (place / stage for run in runs for place in (run, run / EARLIER) for stage in stages)
    return any(os.path.isdir(place) for place in places)  # false for a folder that one may not read


def reusable(stage: str, stage_hash: str, runs: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    """The runs that have a complete result of a stage with this hash, and its folder.

    One that asked people is left out: their labels stay in the run that asked.
    """
    for run in runs:
        for folder in (run / stage, run / EARLIER / stage / stage_hash[:16]):
            record = read_record(folder) if os.access(folder, os.X_OK) else {}
            if record.get("complete") and record.get("hash") == stage_hash and not (folder / AGREEMENT).exists():
                yield run, folder


def reuse(store: StageStore, stage: str, stage_hash: str, runs: Sequence[Path], say: Callable[[str], None]) -> None:
    """Let a stage's folder hold the result of another run, if there is one for this hash that is not damaged.

    A stage that has begun with this hash continues instead.
    """
    if store.record(stage).get("hash") == stage_hash:
        return
    for run, folder in reusable(stage, stage_hash, runs):
        new = store.path(stage).with_name(f".{stage}{NEW}")
        shutil.rmtree(new, ignore_errors=True)
        try:
            _copy(folder, new)
            whole = damage_of(new) is None and read_record(new).get("hash") == stage_hash
        except OSError:  # another process deletes or moves it
            whole = False
        if whole:
            if store.path(stage).exists():
                store.set_aside(stage)
            move_folder(new, store.path(stage))
            say(f"{stage}: reused from {run}")
            return
        shutil.rmtree(new, ignore_errors=True)


def _copy(folder: Path, new: Path) -> None:
    """Link or copy the files of a result, durably."""
    for name in (*read_record(folder).get("files", {}), "stage.json"):
        if (folder / name).is_file():
            make_folder((new / name).parent)
            _link(folder / name, new / name)
    for place in [path for path in new.rglob("*") if path.is_dir()]:
        sync_folder(place)
    sync_folder(new)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())
