"""Digests of files, models and plain data, and the versions of the libraries that results depend on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import alignkit


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """SHA-256 of plain data, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of alignkit and of the libraries that determine a result's numbers."""
    names = ("torch", "transformers", "peft", "trl")
    return {"alignkit": alignkit.__version__, **{name: importlib.metadata.version(name) for name in names}}


def model_digest(source: str) -> Any:
    """Identifies a model's weights, tokenizer and template: digests of a folder's files, or the hub id itself."""
    folder = Path(source)
    if not folder.is_dir():
        return source
    kinds = (".safetensors", ".json", ".jinja", ".py")
    return {file.name: file_digest(file) for file in sorted(folder.iterdir()) if file.suffix in kinds}
