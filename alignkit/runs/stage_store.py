"""The stages' folders in a run's folder: which are complete, where results are, and which earlier ones were set aside.

NAME/stage.json          the stage's hash, whether it is complete, its summary
NAME/adapter             the result of a training stage, in peft's format
NAME/kept/K              its version after epoch or iteration K, with `keep_versions: true`
NAME/data.jsonl          the groups that a step made
NAME/metrics.jsonl       joined into the run's metrics.jsonl
.NAME.previous           one earlier result, restored if the recipe is changed back
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from alignkit.errors import RunFailed
from alignkit.io.atomic import write_json, write_text


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
        """The stage's stage.json; empty if there is none."""
        return _record(self.path(stage))

    def is_complete(self, stage: str, stage_hash: str) -> bool:
        """Whether the stage has a complete result with this hash."""
        return _is_complete(self.record(stage), stage_hash)

    def begin(self, stage: str, stage_hash: str) -> Path:
        """Mark a stage as started, and return its folder."""
        folder = self.path(stage)
        folder.mkdir(exist_ok=True)
        write_json(folder / "stage.json", {"hash": stage_hash, "complete": False})
        return folder

    def finish(self, stage: str, record: Mapping[str, Any]) -> None:
        """Mark a stage as complete; its checkpoints are no longer needed."""
        write_json(self.path(stage) / "stage.json", record)
        shutil.rmtree(self.path(stage) / "checkpoints", ignore_errors=True)

    def restore(self, stage: str, stage_hash: str) -> None:
        """Swap in the result that was set aside, if it is complete and has this hash."""
        folder, previous = self.path(stage), self._previous(stage)
        if self.record(stage).get("hash") == stage_hash or not _is_complete(_record(previous), stage_hash):
            return
        swap = self.folder / f".{stage}.swap"
        previous.rename(swap)
        if folder.exists():
            folder.rename(previous)
        swap.rename(folder)

    def set_aside(self, stage: str) -> None:
        """Keep one earlier result of a stage. An incomplete one never replaces a complete one."""
        folder, previous = self.path(stage), self._previous(stage)
        if not self.record(stage).get("complete") and _record(previous).get("complete"):
            shutil.rmtree(folder)
            return
        shutil.rmtree(previous, ignore_errors=True)
        folder.rename(previous)

    def artifact(self, reference: str) -> Path:
        """The folder of a saved role: `sft`, `sft@2`, or a step that selected one. Raises RunFailed if missing."""
        stage, _, version = reference.partition("@")
        if selected := self.record(stage).get("policy"):
            return self.artifact(str(selected))
        folder = self.path(stage) / "kept" / version if version else self.path(stage) / "adapter"
        if folder.is_dir():
            return folder
        kept = sorted((path.name for path in (self.path(stage) / "kept").glob("*") if path.name.isdigit()), key=int)
        help = f"kept versions: {', '.join(kept)}" if kept else f"set 'keep_versions: true' in stage '{stage}'"
        raise RunFailed(f"'{reference}' does not exist: there is no folder {folder}" + (f"; {help}" if version else ""))

    def join_metrics(self) -> None:
        """Write the run's metrics.jsonl: those of its stages, in order."""
        files = [self.path(stage) / "metrics.jsonl" for stage in self.stages]
        texts = [file.read_text(encoding="utf-8") for file in files if file.exists()]
        write_text(self.folder / "metrics.jsonl", "".join(texts))

    def _previous(self, stage: str) -> Path:
        return self.folder / f".{stage}.previous"


def _record(folder: Path) -> dict[str, Any]:
    path = folder / "stage.json"
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return record


def _is_complete(record: Mapping[str, Any], stage_hash: str) -> bool:
    return bool(record.get("complete")) and record["hash"] == stage_hash
