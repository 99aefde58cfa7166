"""Files and folders that are either complete or absent: write next to the target, fsync, rename.

What is not finished has a hidden name that ends in one of ours, such as `.adapter.alignkit-new`. A
user's file or folder never has such a name, so whoever cleans up after a killed process cannot hit
one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from alignkit.io.text import redacted

UNFINISHED, NEW, OLD, DISCARDED = (
    ".alignkit-tmp",
    ".alignkit-new",
    ".alignkit-old",
    ".alignkit-discarded",
)
LOCK = ".lock"  # the lock in a run's folder


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under its name, complete and flushed to disk, if the block ends
    without an error.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
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
    """Write a text file; a crash leaves the old file or the new one, never a part."""
    with whole_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write plain data as indented JSON without keys of services, like `write_text`."""
    write_text(path, json.dumps(redacted(value), indent=1, ensure_ascii=False) + "\n")


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, and make them durable."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: what was made, renamed or deleted there."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder to fill; it replaces the target if the block ends without an error.

    All files get the permissions of the umask; safetensors would make its files private.
    """
    make_folder(target.parent)
    new = target.with_name(f".{target.name}{NEW}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    # Those of the umask, or of the parent folder's default access list
    mode = new.stat().st_mode & 0o666
    for file in new.rglob("*"):
        if file.is_file():
            file.chmod(mode)
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        elif file.is_dir():
            sync_folder(file)
    sync_folder(new)  # a renamed folder whose entries are lost is not complete
    old = target.with_name(f".{target.name}{OLD}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def made_once(folder: Path, make: Callable[[Path], None], last: str = "") -> Path:
    """The folder, which `make` fills if no process has done so before. last: the file that it
    writes last; a folder without it is made again.
    """
    if not (folder / last).exists():
        make_folder(folder.parent)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            # Another process may have made it while this one waited
            if not (folder / last).exists():
                with replace_folder(folder) as new:
                    make(new)
    return folder


def move_folder(source: Path, target: Path) -> None:
    """Rename a folder, durably; the target's parents are made."""
    make_folder(target.parent)
    source.rename(target)
    for parent in {source.parent, target.parent}:
        sync_folder(parent)


def replace_link(path: Path, target: Path) -> None:
    """Let a name be a link to a target; a crash leaves the old link or the new one."""
    new = path.with_name(f".{path.name}{NEW}")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(path)
    sync_folder(path.parent)


def discard_folder(folder: Path) -> None:
    """Delete a folder. A process that dies meanwhile leaves none that looks like a part of it."""
    discarded = folder.with_name(f".{folder.name}{DISCARDED}")
    if discarded.exists():
        shutil.rmtree(discarded)
    folder.rename(discarded)
    shutil.rmtree(discarded)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left at any depth of a folder, but not in other runs' folders
    below it.

    A folder that was being replaced when the process died is restored.
    """
    for place, folders, files in os.walk(folder):
        here = Path(place)
        links = [name for name in folders if (here / name).is_symlink()]
        for name in filter(_is_ours, [*files, *links]):
            (here / name).unlink()
        folders[:] = [name for name in folders if name not in links]
        for name in filter(_is_ours, sorted(folders, reverse=True)):  # OLD before NEW
            target = here / name.removeprefix(".").removesuffix(OLD)
            restored = name.endswith(OLD) and not target.exists()
            move_folder(here / name, target) if restored else shutil.rmtree(here / name)
        folders[:] = [
            name for name in folders if not _is_ours(name) and not (here / name / LOCK).exists()
        ]


def _is_ours(name: str) -> bool:
    return name.startswith(".") and name.endswith((UNFINISHED, NEW, OLD, DISCARDED))
