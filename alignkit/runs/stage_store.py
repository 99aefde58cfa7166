"""The stages' folders in a run's folder: which are complete, where results are, and which earlier ones were set aside.

NAME/stage.json            the stage's hash, whether it is complete, its summary, checksums of its files
NAME/adapter               the result of a training stage, in peft's format
NAME/kept/K                its version after epoch or iteration K, with `keep_versions: true`
NAME/data.jsonl            the groups that a step made
NAME/metrics.jsonl         joined into the run's metrics.jsonl
.earlier/NAME/HASH         a result for other settings; restored when the recipe is changed back
.earlier/NAME/damaged      a result whose files no longer have their checksums, until there is a new one
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from alignkit.errors import RunFailed
from alignkit.io.atomic import discard_folder, make_folder, move_folder, sync_folder, whole_file, write_json
from alignkit.io.console import Metrics
from alignkit.io.digest import digest, file_digest
from alignkit.io.stage_results import EARLIER, find_result, is_result_name, read_record

DAMAGED = "damaged"  # next to earlier results
NEEDED = ("adapter", "kept", "data.jsonl")  # by later stages; anything else in the folder may be deleted by hand


class StageStore:
    """The folders of a run's stages. stages: their names, in order."""

    def __init__(self, folder: Path, stages: Iterable[str]):
        self.folder, self.stages = folder, tuple(stages)

    def path(self, stage: str) -> Path:
        """The folder of a stage."""
        return self.folder / stage

    def data(self, stage: str) -> Path:
        """The groups that a step made."""
        return self.path(stage) / "data.jsonl"

    def record(self, stage: str) -> dict[str, Any]:
        """The stage's stage.json; empty if there is none, or if it is damaged."""
        return read_record(self.path(stage))

    def is_complete(self, stage: str, stage_hash: str) -> bool:
        """Whether the stage has a complete result with this hash."""
        record = self.record(stage)
        return bool(record.get("complete")) and record["hash"] == stage_hash

    def has_results(self, stage: str) -> bool:
        """Whether the stage has a folder, or a result for any settings that was set aside."""
        return self.path(stage).exists() or any((self.folder / EARLIER / stage).glob("[!.]*"))

    def begin(self, stage: str, stage_hash: str, parts: Mapping[str, Any] | None = None, seconds: float = 0.0) -> Path:
        """Mark a stage as started, and return its folder. parts: what the hash is made of. seconds: of earlier starts,
        or of this one too where it ended without a result."""
        folder = self.path(stage)
        make_folder(folder)
        record = {"hash": stage_hash, "complete": False, "depends_on": parts or {}, "seconds": round(seconds, 1)}
        _write_record(folder, record)
        return folder

    def wait(self, stage: str, labels: int, place: Path) -> None:
        """Write down that a stage that has begun waits for labels of people. place: the store that they go to."""
        waits = {"labels": labels, "store": os.path.relpath(place.resolve(), self.folder.resolve())}
        _write_record(self.path(stage), {**self.record(stage), "waits_for": waits})

    def labels(self, stage: str) -> Path | None:
        """The store in which a stage waits for labels; None if it does not wait."""
        waits = self.record(stage).get("waits_for")
        return Path(os.path.normpath(self.folder / waits["store"])) if waits else None

    def finish(self, stage: str, record: Mapping[str, Any]) -> None:
        """Mark a stage as complete, with checksums of its files; its checkpoints are no longer needed."""
        folder = self.path(stage)
        _write_record(folder, {**record, "files": _checksums(folder)})
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        shutil.rmtree(self._earlier(stage, DAMAGED), ignore_errors=True)

    def damage(self, stage: str) -> str | None:
        """What is wrong with a stage's record or files, in words; None if nothing is."""
        return damage_of(self.path(stage))

    def restore(self, stage: str, stage_hash: str) -> bool:
        """Bring back the result that was set aside for this hash. Returns whether there was one."""
        if self.record(stage).get("hash") == stage_hash or not self.waits(stage, stage_hash):
            return False
        if self.path(stage).exists():
            self.set_aside(stage)
        move_folder(self._earlier(stage, stage_hash), self.path(stage))
        return True

    def bring_back(self, stage: str, stage_hash: str, say: Callable[[str], None]) -> None:
        """Let a stage's folder hold the result for its settings, if there is one that is not damaged.

        Raises RunFailed if the folder is no result of the run.
        """
        if self.restore(stage, stage_hash):
            say(f"{stage}: restored an earlier result for these settings")
        if damage := self.damage(stage):
            self._check_own(stage)
            say(f"{stage}: {damage}; the stage runs again")
            self._move(stage, DAMAGED)

    def waits(self, stage: str, stage_hash: str) -> bool:
        """Whether a result was set aside for this hash."""
        return bool(stage_hash) and read_record(self._earlier(stage, stage_hash)).get("hash") == stage_hash

    def set_aside(self, stage: str) -> None:
        """Keep a stage's result for the day that the recipe is changed back.

        One that is neither complete nor has a checkpoint is deleted.
        """
        self._check_own(stage)
        folder, record = self.path(stage), self.record(stage)
        if record.get("complete") or any((folder / "checkpoints").glob("[0-9]*")):
            self._move(stage, record.get("hash", DAMAGED))
        else:
            discard_folder(folder)

    def _check_own(self, stage: str) -> None:
        """Raise RunFailed if the stage's folder is not one that a run has made."""
        folder = self.path(stage)
        if not (folder / "stage.json").is_file() and not is_empty(folder):
            help = "move it out of the folder of the run, or rename the stage"
            raise RunFailed(f"{damage_of(folder)}\nhelp: {help}")

    def _move(self, stage: str, name: str) -> None:
        if (place := self._earlier(stage, name)).exists():
            discard_folder(place)
        move_folder(self.path(stage), place)

    def artifact(self, reference: str) -> Path:
        """The folder of a saved role: `sft`, `sft@2`, `sft@sft~1`, or a step that selected one.

        Raises RunFailed if it is missing, and RecipeError for the name of a result that the run does not have.
        """
        if is_result_name(reference):
            result = find_result(self.folder, reference)
            if damage := damage_of(result.folder):
                raise RunFailed(
                    f"{damage}\nhelp: run the recipe again with {result.algorithm}, which repeats the stage"
                )
            return result.folder / "adapter"
        stage, _, version = reference.partition("@")
        if selected := self.record(stage).get("policy"):
            return Path(selected) if Path(selected).is_absolute() else self.artifact(str(selected))
        folder = self.path(stage) / "kept" / version if version else self.path(stage) / "adapter"
        if folder.is_dir():
            return folder
        kept = sorted((path.name for path in (self.path(stage) / "kept").glob("*") if path.name.isdigit()), key=int)
        help = f"kept versions: {', '.join(kept)}" if kept else f"set 'keep_versions: true' in stage '{stage}'"
        raise RunFailed(f"'{reference}' does not exist: there is no folder {folder}" + (f"; {help}" if version else ""))

    def metrics(self, stage: str, size: int = 0) -> Metrics:
        """The metrics of a stage that begins, of which `size` bytes stay. The run's metrics.jsonl grows with them."""
        metrics = Metrics(self.path(stage) / "metrics.jsonl", size, [self.folder / "metrics.jsonl"])
        self.join_metrics(stage)
        return metrics

    def join_metrics(self, last: str) -> None:
        """Write the run's metrics.jsonl: those of its stages up to this one, in order."""
        files = [self.path(stage) / "metrics.jsonl" for stage in self.stages[: self.stages.index(last) + 1]]
        joined = self.folder / "metrics.jsonl"
        content = b"".join(file.read_bytes() for file in files if file.exists())
        if not joined.exists() or joined.read_bytes() != content:  # else whoever follows it loses the file
            with whole_file(joined) as file:
                file.write(content)

    def _earlier(self, stage: str, stage_hash: str) -> Path:
        return self.folder / EARLIER / stage / stage_hash[:16]


def damage_of(folder: Path) -> str | None:
    """What is wrong with the record or the files of a stage's folder, in words; None if nothing is.

    Files without a record are a user's own, or a result whose record is lost.
    """
    record = read_record(folder)
    if not record and (folder / "stage.json").exists():
        return f"{folder / 'stage.json'} is damaged"
    if not record and folder.exists() and not is_empty(folder):
        return f"{folder} has files, but no stage.json" if folder.is_dir() else f"{folder} is a file"
    for name, expected in record.get("files", {}).items():
        file = folder / name
        if not file.is_file():
            if name.split("/")[0] in NEEDED:
                return f"{file} is missing"
        elif file_digest(file) != expected:
            return f"{file} has changed since the stage wrote it"
    return None


def is_empty(path: Path) -> bool:
    """Whether this is a folder without files, as far as we may look into it."""
    return path.is_dir() and os.access(path, os.R_OK | os.X_OK) and not any(path.iterdir())


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    plain = json.loads(json.dumps(record, default=str))  # the check is one of what will be read
    write_json(folder / "stage.json", {**plain, "check": digest(plain)})


def _checksums(folder: Path) -> dict[str, str]:
    """Digests of a stage's files by name, and their names made durable."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0] in ("checkpoints", "stage.json"):
            continue
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            files[name.as_posix()] = file_digest(path)
    return files
