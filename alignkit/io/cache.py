"""The cache that outlives runs: base models."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`ALIGNKIT_CACHE` if set, else `alignkit` in the user's cache folder."""
    folder = os.environ.get("ALIGNKIT_CACHE")
    if folder:
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "alignkit"
