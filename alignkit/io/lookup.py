"""Look for files under names that a person wrote. A name that no file system can have is one without a file."""

from __future__ import annotations

import os
import os.path
from contextlib import suppress
from pathlib import Path

IMPOSSIBLE = (OSError, ValueError, RuntimeError)  # too long, with a NUL, or of an unknown user (~nobody)

# Unlike the methods of Path, these are false for such names.
is_file, is_dir, exists = os.path.isfile, os.path.isdir, os.path.exists


NO_FILE = "this is a pipe or a device, which cannot be read twice; write its rows to a file"


def is_special(path: Path | str) -> bool:
    """Whether a path names a pipe, a device or a socket: reading it may never end."""
    return exists(path) and not is_file(path) and not is_dir(path)


def expanded(path: Path | str) -> Path:
    """The path with `~` replaced by a home folder, if there is such a user."""
    return Path(os.path.expanduser(path))


def absolute(path: Path) -> Path:
    """The absolute path. Links stay, such as that of a stage to its result."""
    return Path(os.path.abspath(path))


def resolved(path: Path) -> Path:
    """The absolute path without links, or the path itself."""
    with suppress(*IMPOSSIBLE):
        return path.resolve()
    return path


def cache_folder() -> Path:
    """What outlives runs, such as base models: `ALIGNKIT_CACHE` if set, else `alignkit` in the user's cache folder."""
    user = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    return Path(os.environ.get("ALIGNKIT_CACHE") or Path(user) / "alignkit")
