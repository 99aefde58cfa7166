"""Files that are either complete or not there: write beside the target, fsync, rename; checksums on checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from alignkit.errors import RunFailed

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "MANIFEST.json"


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write; it appears under its name, whole and on the disk, when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old one or the new one, never half of either."""
    with whole_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """A new folder to fill, put in the target's place when the block ends without an error.

    Its files may be read and written by whom the umask says, also those of safetensors, which makes them private.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    mode = new.stat().st_mode & 0o666  # the umask, or what the parent folder says in its place
    for file in new.rglob("*"):
        if file.is_file():
            file.chmod(mode)
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """SHA-256 of plain data, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class Checkpoint:
    """Everything a stage's numbers depend on: tensors (weights and optimiser) and plain state."""

    tensors: Mapping[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, number: int, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write `folder/NUMBER` whole and verified, then remove all but the newest `keep`."""
    from safetensors.torch import save_file

    target = folder / f"{number:06d}"
    with replace_folder(target) as new:
        tensors = {key: value.detach().cpu().contiguous() for key, value in checkpoint.tensors.items()}
        save_file(tensors, new / "tensors.safetensors")
        (new / "state.json").write_text(json.dumps(checkpoint.state, sort_keys=True), encoding="utf-8")
        sums = {file.name: file_digest(file) for file in sorted(new.iterdir())}
        (new / MANIFEST).write_text(json.dumps(sums, indent=1), encoding="utf-8")
    for old in _numbered(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def load_checkpoint(folder: Path, say: Any) -> Checkpoint | None:
    """The newest whole checkpoint; damaged ones are reported through `say` and passed over. None: there is none.

    Raises RunFailed when checkpoints exist and all are damaged: starting afresh would be a silent loss.
    """
    from safetensors.torch import load_file

    found = _numbered(folder)
    for path in reversed(found):
        fault = _damage(path)
        if fault is None:
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            return Checkpoint(load_file(path / "tensors.safetensors"), state)
        say(f"checkpoint {path} is damaged ({fault}); falling back to the one before")
    if found:
        raise RunFailed(f"all checkpoints in {folder} are damaged; delete the folder to start this stage afresh")
    return None


def _numbered(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.isdigit())


def _damage(path: Path) -> str | None:
    try:
        sums = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{MANIFEST}: {error}"
    for name, expected in sums.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file_digest(file) != expected:
            return f"{name} differs from its checksum"
    return None
