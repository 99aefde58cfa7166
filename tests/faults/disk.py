"""Power failures: a run is stopped after a call that makes something durable, and all else is lost.

Model of the disk: a file holds what it held when it was last synced, and a folder the names that it
had when it was last synced. A file that never was is empty, and a name that never was does not
exist.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Tree = dict[str, bytes | Path | None]  # of files; a path for a link; None for a folder


@contextmanager
def synced(then: Callable[[int], None]) -> Iterator[None]:
    """Call `then` with every handle that is synced, afterwards."""
    real = os.fsync

    def fsync(handle: int) -> None:
        real(handle)
        then(handle)

    os.fsync = fsync
    try:
        yield
    finally:
        os.fsync = real


class Disk:
    """Remembers what would survive after each call of `os.fsync` below a folder that it makes."""

    def __init__(self, root: Path):
        root.mkdir()
        self.root = root
        self.files: dict[int, bytes | Path] = {}
        # Names: number, and whether it is a folder
        self.folders: dict[int, dict[str, tuple[int, bool]]] = {}
        self.kept: list[int] = []  # open files, so that no number of theirs is given to another
        self.points: list[Tree] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        with synced(self.note):
            yield
        for handle in self.kept:
            os.close(handle)

    def note(self, handle: int) -> None:
        path, facts = Path(os.readlink(f"/proc/self/fd/{handle}")), os.fstat(handle)
        if not path.is_relative_to(self.root):
            return
        self.kept.append(os.dup(handle))
        if stat.S_ISDIR(facts.st_mode):
            names = self.folders[facts.st_ino] = {}
            for entry in os.scandir(path):
                names[entry.name] = entry.inode(), entry.is_dir(follow_symlinks=False)
                if entry.is_symlink():
                    self.files[entry.inode()] = Path(os.readlink(entry.path))
        else:
            self.files[facts.st_ino] = path.read_bytes()
        self.points.append(dict(self.survivors(self.root.stat().st_ino)))

    def survivors(self, folder: int, path: str = "") -> Iterator[tuple[str, bytes | Path | None]]:
        for name, (number, is_folder) in self.folders.get(folder, {}).items():
            yield f"{path}{name}", None if is_folder else self.files.get(number, b"")
            if is_folder:
                yield from self.survivors(number, f"{path}{name}/")


def restore(tree: Tree, folder: Path) -> None:
    """Make a folder that holds a tree, whose folders come before what is in them."""
    folder.mkdir()
    for name, content in tree.items():
        if content is None:
            (folder / name).mkdir()
        elif isinstance(content, Path):
            (folder / name).symlink_to(content)
        else:
            (folder / name).write_bytes(content)
