"""Commits that revisions of hub repositories mean, and copies in the hub's cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

Kind = Literal["dataset", "model"]
TIMEOUT = 5  # seconds to wait for the hub's answer


def commit_of(kind: Kind, name: str, revision: str | None) -> str | None:
    """The commit that a revision means now; offline, that of the copy in the hub's cache."""
    if revision and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return _cached_commit(kind, name, revision)
    try:
        info = huggingface_hub.HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=TIMEOUT)
        return str(info.sha) if info.sha else revision
    except Exception:  # of many kinds; whoever loads it looks into the cache, or says what is wrong
        return _cached_commit(kind, name, revision)


def _cached_commit(kind: Kind, name: str, revision: str | None) -> str | None:
    """The commit of the copy in the hub's cache; the revision itself if there is none, or several."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    try:
        folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)
    except HFValidationError:  # no id at all; whoever loads it says so
        return revision
    reference = folder / "refs" / (revision or "main")
    if reference.is_file():
        return reference.read_text(encoding="utf-8").strip()
    copies = [path.name for path in folder.glob("snapshots/*")]
    return copies[0] if revision is None and len(copies) == 1 else revision


def cached_snapshot(source: str, revision: str | None) -> Path | None:
    """The folder of a cached copy, if it has a configuration and weights."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(source, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return (
        folder
        if any((folder / name).exists() for name in ("model.safetensors", "model.safetensors.index.json"))
        else None
    )
