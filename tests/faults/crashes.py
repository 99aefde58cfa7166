"""Power failures: a run is stopped after every call that makes something durable, and all else is
lost.

Model of the disk: a file holds what it held when it was last synced, and a folder the names that it
had when it was last synced. A file that never was is empty, and a name that never was does not
exist. A kill loses nothing.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.case import HELD, LOST, SILENT, UNTIDY, Case, command
from tests.faults.runs import results

Tree = dict[str, bytes | Path | None]  # of files; a path for a link; None for a folder


class Disk:
    """Watches `os.fsync` below a folder, and remembers what would survive after each call."""

    def __init__(self, root: Path):
        self.root = root
        self.files: dict[int, bytes | Path] = {}
        # Names: number, and whether it is a folder
        self.folders: dict[int, dict[str, tuple[int, bool]]] = {}
        self.kept: list[int] = []  # open files, so that no number of theirs is given to another
        self.points: list[tuple[Tree, Tree]] = []  # what survives a power failure, and a kill

    @contextmanager
    def watching(self) -> Iterator[None]:
        real = os.fsync

        def fsync(handle: int) -> None:
            real(handle)
            self.synced(handle)

        os.fsync = fsync
        try:
            yield
        finally:
            os.fsync = real
            for handle in self.kept:
                os.close(handle)

    def synced(self, handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if path != self.root and self.root not in path.parents:
            return
        facts = os.fstat(handle)
        self.kept.append(os.dup(handle))
        if stat.S_ISDIR(facts.st_mode):
            entries = list(os.scandir(path))
            self.folders[facts.st_ino] = {
                e.name: (e.inode(), e.is_dir(follow_symlinks=False)) for e in entries
            }
            self.files |= {e.inode(): Path(os.readlink(e.path)) for e in entries if e.is_symlink()}
        else:
            self.files[facts.st_ino] = path.read_bytes()
        number = os.stat(self.root).st_ino
        now = {str(file.relative_to(self.root)): content_of(file) for file in self.root.rglob("*")}
        self.points.append((dict(self.survivors(number)), now))

    def survivors(self, folder: int, path: str = "") -> Iterator[tuple[str, bytes | Path | None]]:
        for name, (number, is_folder) in self.folders.get(folder, {}).items():
            below = f"{path}{name}"
            if is_folder:
                yield below, None
                yield from self.survivors(number, f"{below}/")
            else:
                yield below, self.files.get(number, b"")


def content_of(file: Path) -> bytes | Path | None:
    if file.is_symlink():
        return file.readlink()
    return None if file.is_dir() else file.read_bytes()


def restore(tree: Tree, folder: Path) -> None:
    """Make a folder that holds a tree."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in sorted(tree.items()):
        if content is None:
            (folder / name).mkdir(parents=True, exist_ok=True)
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                (folder / name).symlink_to(content)
            else:
                (folder / name).write_bytes(content)


def cases(recipe: Path, whole: dict[str, str], scratch: Path) -> list[Case]:
    """A case for each call of fsync and each kind of crash that leaves another folder."""
    disk = Disk(scratch / "watched")
    disk.root.mkdir()
    with disk.watching():
        said = command(["run", str(recipe), "--out", str(disk.root)])
    assert said.code == 0, said.text
    found, seen = [], list[Tree]()
    for number, point in enumerate(disk.points):
        for kind, tree in zip(("power", "kill"), point, strict=True):
            files = {name: content for name, content in tree.items() if content is not None}
            if files not in seen[-4:]:
                seen.append(files)
                name = f"{kind} after fsync {number}"
                found.append(Case("crash", name, _continues(recipe, tree, whole)))
    return found


def _continues(
    recipe: Path, tree: Tree, whole: dict[str, str]
) -> Callable[[Path], tuple[str, str]]:
    def run(folder: Path) -> tuple[str, str]:
        restore(tree, folder / "run")
        finished = {
            name.split("/")[0]
            for name in tree
            if name.endswith("/stage.json") and _complete(tree[name])
        }
        said = command(["run", str(recipe), "--out", str(folder / "run")])
        if said.code != 0:
            return (LOST if said.tidy else UNTIDY), said.text
        if results(folder / "run") != whole:
            return SILENT, said.text
        again = [name for name in finished if f"{name}: unchanged, reused" not in said.text]
        return (LOST, f"{again} ran again\n{said.text}") if again else (HELD, said.text)

    return run


def _complete(content: bytes | None) -> bool:
    return bool(content) and b'"complete": true' in (content or b"")
