"""The results of a run's stages, each under a key that stands for everything that it depends on:
complete or absent.

STAGE                a link to the stage's current folder, which is one of these:
.results/STAGE-KEY   a complete result: stage.json with the digests of all its files; adapter,
                     kept/K, data.jsonl, ...
.work/STAGE-KEY      what is being made, with its checkpoints; one rename makes it a result
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from alignkit.errors import RunFailed
from alignkit.io.atomic import (
    discard_folder,
    make_folder,
    move_folder,
    replace_folder,
    replace_link,
    sync_folder,
    write_json,
)
from alignkit.io.digest import digest, file_digest
from alignkit.io.text import Say, redacted

RESULTS, WORK = ".results", ".work"
CELLS = "cells"  # the folder of a run with the runs of its cells
RECIPE = "recipe.resolved.yaml"
STARTS = "starts.jsonl"
PAGE, FACTS = "report.html", "report.json"
AGREEMENT = "agreement.json"  # written by a step that asked people
SWITCH = "ALIGNKIT_REUSE"  # 0: a run reuses only its own stages
ALWAYS_READ = 50 * 10**6  # bytes; the size and the time of a larger file are believed
KEY = "[0-9a-f]" * 16


# Records


def json_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a file of lines, without those that a killed process did not finish; none
    without a file.
    """
    found = list[dict[str, Any]]()
    if file.is_file():
        # Not `splitlines`, which also cuts at U+0085 and U+2028 in a text
        for line in file.read_text("utf-8", "replace").split("\n"):
            with suppress(ValueError):
                found.append(json.loads(line))
    return found


def append_line(file: Path, value: Mapping[str, Any]) -> None:
    """Append an object to a file of lines. What a killed process left of one stays a line."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(f"\n{json.dumps(redacted(value))}\n")


def read_record(folder: Path) -> dict[str, Any]:
    """A stage folder's stage.json; empty if it is missing or damaged."""
    return read_checked(folder / "stage.json")


def read_checked(file: Path) -> dict[str, Any]:
    """What `write_checked` wrote; empty if it is missing or damaged."""
    try:
        record: dict[str, Any] = json.loads(file.read_text("utf-8"))
        check = record.pop("check")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    if check == digest(record):
        return record
    return {}


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write a stage folder's stage.json."""
    write_checked(folder / "stage.json", record)


def write_checked(file: Path, record: Mapping[str, Any]) -> None:
    """Write a file of JSON without secrets, with a digest that shows damage."""
    plain = recorded(record)
    write_json(file, {**plain, "check": digest(plain)})


def recorded(record: Mapping[str, Any]) -> Any:
    """Plain data as they will be read from a file: without secrets, with keys that are texts."""
    return redacted(json.loads(json.dumps(record, default=str)))


def manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Every file in a folder, but its record and checkpoints: digest, size, time. Their names are
    made durable.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0] in ("checkpoints", "stage.json"):
            continue
        if path.is_dir():
            sync_folder(path)
        else:
            facts = path.stat()
            files[name.as_posix()] = {
                "sha256": file_digest(path),
                "bytes": facts.st_size,
                "time": facts.st_mtime_ns,
            }
    return files


def damage_of(folder: Path) -> str | None:
    """What is wrong with a result, in words; None if every file is as the stage wrote it."""
    record = read_record(folder)
    if not record:
        return f"{folder / 'stage.json'} is missing or damaged"
    for name, written in record.get("files", {}).items():
        if not _is_as_written(folder / name, written):
            return f"{folder / name} is not as the stage wrote it"
    return None


def _is_as_written(file: Path, written: Mapping[str, Any]) -> bool:
    if not file.is_file():
        return False
    facts = file.stat()
    if facts.st_size != written["bytes"]:
        return False
    believed = facts.st_size >= ALWAYS_READ and facts.st_mtime_ns == written["time"]
    return believed or file_digest(file) == written["sha256"]


def stage_folder(folder: Path) -> Path:
    """RUN/STAGE of the weights of a run: RUN/STAGE/adapter or RUN/STAGE/kept/K; any other folder
    stays.
    """
    folder = folder.resolve()
    if folder.parent.name == "kept":
        folder = folder.parent.parent
    elif folder.name in ("adapter", "model"):
        folder = folder.parent
    if folder.parent.name in (RESULTS, WORK):
        return folder.parent.parent / stage_of(folder)
    return folder


def stage_of(result: Path) -> str:
    """The stage whose result is in a folder of `.results` or `.work`."""
    return result.name.rpartition("-")[0]


# Results by key


def find(run: Path, stage: str, key: str, others: Sequence[Path] = ()) -> Path | None:
    """The folder of a whole result for a key: the run's own, or one of another run.

    What asked people is never taken from another run: their labels stay in the run that asked.
    """
    for place in (run, *others):
        folder = place / RESULTS / f"{stage}-{key[:16]}"
        if read_record(folder).get("hash") != key or (
            place != run and (folder / AGREEMENT).exists()
        ):
            continue
        if damage_of(folder) is None:
            return folder
    return None


def other_runs(folder: Path) -> list[Path]:
    """The runs next to this one, and that of a cell, whose results it may reuse."""
    if os.environ.get(SWITCH) == "0" and not is_cell(folder):
        return []
    near = sorted(path.parent for path in folder.parent.glob(f"*/{RECIPE}"))
    others = [run for run in near if run.name != folder.name]
    return [*others, folder.parents[1]] if is_cell(folder) else others


def is_cell(folder: Path) -> bool:
    """Whether a run is a cell of another one."""
    return folder.parent.name == CELLS


def _linked(source: str, target: str) -> None:
    """A link to a file of a result, which is never written again, or else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


class Results:
    """The results of the run in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def data(self, stage: str) -> Path:
        """The groups that a step made."""
        return self.folder / stage / "data.jsonl"

    def record(self, stage: str) -> dict[str, Any]:
        """The stage's stage.json; empty if there is none, or if it is damaged."""
        return read_record(self.folder / stage)

    def of(self, kind: str, stage: str, key: str) -> Path:
        """The folder of a result for a key (kind: RESULTS), or of its unfinished work (kind:
        WORK).
        """
        return self.folder / kind / f"{stage}-{key[:16]}"

    def link(self, stage: str, key: str, others: Sequence[Path], say: Say) -> bool:
        """Let a stage's link lead to its whole result for a key, which may be of another run.
        Returns whether it does.

        Raises RunFailed if there are files in the place of the link.
        """
        path, result = self.folder / stage, self.of(RESULTS, stage, key)
        if path.exists() and not path.is_symlink() and not self._adopted(stage):
            try:
                path.rmdir()  # an empty folder
            except OSError as error:
                text = f"{path} is no link to a result of this run"
                raise RunFailed(
                    f"{text}\nhelp: move it out of the folder of the run, or rename the stage"
                ) from error
        # A run was killed before the rename
        if read_record(self.of(WORK, stage, key)).get("complete"):
            self._put(stage, key)
        found = find(self.folder, stage, key, others)
        if found is None:
            return False
        if found != result:
            copy = _linked if is_cell(self.folder) else shutil.copy2  # cells may be many
            with replace_folder(result) as new:
                shutil.copytree(found, new, dirs_exist_ok=True, copy_function=copy)
            say(f"{stage}: reused from {found.parent.parent}")
        elif self.record(stage).get("hash") not in (None, key):
            say(f"{stage}: restored an earlier result for these settings")
        self._link(stage, result)
        return True

    def _adopted(self, stage: str) -> bool:
        """Whether the folder in the place of a link is what the link led to: the run was copied
        with its links followed. It then takes the place of the copy of that.
        """
        path = self.folder / stage
        record = read_record(path)
        key = str(record.get("hash"))
        if not re.match(KEY, key) or damage_of(path):
            return False
        place = self.of(RESULTS if record.get("complete") else WORK, stage, key)
        if place.exists():
            discard_folder(place)
        move_folder(path, place)
        return True

    def _put(self, stage: str, key: str) -> None:
        """Make complete work the result for its key. One that is there, because it is damaged, is
        kept until then.
        """
        work, result = self.of(WORK, stage, key), self.of(RESULTS, stage, key)
        shutil.rmtree(work / "checkpoints", ignore_errors=True)
        if result.exists():
            discard_folder(result)
        move_folder(work, result)

    def note(self, stage: str, key: str, files: Sequence[str] = ()) -> list[str]:
        """Write, or else read, which files a stage's code has read. key: without them."""
        file = self.folder / RESULTS / f".{stage}-{key[:16]}.json"
        if files:
            write_json(file, files)
        with suppress(OSError, ValueError):
            return list(json.loads(file.read_text("utf-8")))
        return []

    def begin(self, stage: str, key: str, parts: Mapping[str, Any]) -> None:
        """Begin or continue a stage's work. parts: what the key is made of."""
        make_folder(work := self.of(WORK, stage, key))
        write_record(work, {"hash": key, "complete": False, "depends_on": parts})
        self._link(stage, work)

    def wait(self, stage: str, labels: int, store: Path) -> None:
        """Write down that a stage that has begun waits for labels of people. store: that they go
        to.
        """
        waits = {"labels": labels, "store": str(store.resolve())}
        write_record(self.folder / stage, {**self.record(stage), "waits_for": waits})

    def finish(self, stage: str, record: Mapping[str, Any], began: str = "") -> None:
        """Make a stage's work its result, whose checkpoints are no longer needed. began: the key
        under which it began, if it is another one.
        """
        key = record["hash"]
        work = self.of(WORK, stage, key)
        if began and began != key:
            shutil.rmtree(work, ignore_errors=True)
            move_folder(self.of(WORK, stage, began), work)
        write_record(work, {**record, "finished": time.time(), "files": manifest(work)})
        self._put(stage, key)
        self._link(stage, self.of(RESULTS, stage, key))

    def _link(self, stage: str, folder: Path) -> None:
        path, target = self.folder / stage, folder.relative_to(self.folder)
        if path.is_symlink() and path.readlink() == target:
            return
        replace_link(path, target)

    def artifact(self, reference: str) -> Path:
        """The folder of a saved role: `sft`, `sft@2`, or a step that selected one. Raises RunFailed
        if it is missing.
        """
        stage, _, version = reference.partition("@")
        if selected := self.record(stage).get("policy"):
            return Path(selected) if Path(selected).is_absolute() else self.artifact(str(selected))
        folder, help = self.folder / stage / "adapter", ""
        if version:
            folder = self.folder / stage / "kept" / version
            kept = sorted(path.name for path in folder.parent.glob("*"))
            help = (
                "\n"
                f"help: set 'keep_versions: true' in stage '{stage}'; kept versions: "
                f"{', '.join(kept) or 'none'}"
            )
        if not folder.is_dir():
            raise RunFailed(f"'{reference}' does not exist: there is no folder {folder}{help}")
        return folder
