"""Look for files under names that a person wrote. A name that no file system can have is one without a file."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

IMPOSSIBLE = (OSError, ValueError, RuntimeError)  # too long, with a NUL, or of an unknown user (~nobody)


def is_file(path: Path | str) -> bool:
    """Whether there is such a file."""
    with suppress(*IMPOSSIBLE):
        return Path(path).is_file()
    return False


def is_dir(path: Path | str) -> bool:
    """Whether there is such a folder."""
    with suppress(*IMPOSSIBLE):
        return Path(path).is_dir()
    return False


def exists(path: Path | str) -> bool:
    """Whether there is such a file or folder."""
    with suppress(*IMPOSSIBLE):
        return Path(path).exists()
    return False


def expanded(path: Path | str) -> Path:
    """The path with `~` replaced by a home folder, if there is such a user."""
    with suppress(*IMPOSSIBLE):
        return Path(path).expanduser()
    return Path(path)


def resolved(path: Path) -> Path:
    """The absolute path without links, or the path itself."""
    with suppress(*IMPOSSIBLE):
        return path.resolve()
    return path
