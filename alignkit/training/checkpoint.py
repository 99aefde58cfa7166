"""Checkpoints of a training stage: numbered folders with checksums, each either complete or absent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.io.atomic import replace_folder
from alignkit.io.digest import file_digest

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "MANIFEST.json"
TENSORS, STATE = "tensors.safetensors", "state.json"
FILES = {TENSORS, STATE}


@dataclass
class Checkpoint:
    """Everything a stage's numbers depend on: tensors (weights and optimizer) and JSON state."""

    tensors: Mapping[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, number: int, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write `folder/NUMBER` with checksums, then remove all but the newest `keep` checkpoints."""
    from safetensors.torch import save_file

    target = folder / f"{number:06d}"
    with replace_folder(target) as new:
        tensors = {key: value.detach().cpu().contiguous() for key, value in checkpoint.tensors.items()}
        save_file(tensors, new / TENSORS)
        (new / STATE).write_text(json.dumps(checkpoint.state, sort_keys=True), encoding="utf-8")
        sums = {file.name: file_digest(file) for file in sorted(new.iterdir())}
        (new / MANIFEST).write_text(json.dumps(sums, indent=1), encoding="utf-8")
    for old in _numbered(folder)[:-keep]:  # the new one is durable by now
        shutil.rmtree(old)
    return target


def load_checkpoint(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is not damaged, or None if there are none. Damaged ones are reported through `say`.

    If all are damaged, there is nothing to continue from: the stage starts over, and says so.
    """
    from safetensors.torch import load_file

    checkpoints = _numbered(folder)
    for path in reversed(checkpoints):
        damage = _damage(path)
        if damage is None:
            state = json.loads((path / STATE).read_text(encoding="utf-8"))
            return Checkpoint(load_file(path / TENSORS), state)
        say(f"checkpoint {path} is damaged ({damage}); trying the previous one")
    if checkpoints:
        say(f"all checkpoints in {folder} are damaged; the stage starts over")
        shutil.rmtree(folder, ignore_errors=True)  # another process of the run may be faster
    return None


def _numbered(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))


def _damage(path: Path) -> str | None:
    """The damage of a checkpoint in words, or None."""
    try:
        sums = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{MANIFEST}: {error}"
    if not isinstance(sums, dict) or not FILES.issubset(sums):
        return f"{MANIFEST} lacks the files of a checkpoint"
    for name, expected in sums.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file_digest(file) != expected:
            return f"{name} differs from its checksum"
    return None
