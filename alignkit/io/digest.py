"""Digests of files, models and plain data, and the versions of the libraries that results depend on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import alignkit

BIG = 2**26  # bytes; hashing takes one to three seconds per GiB
_big_files: dict[tuple[int, ...], str] = {}  # digests by device, inode, size and times


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes.

    A big file is hashed once per process, unless it changes. The kernel's own time of change tells: unlike the time
    of modification, no program can set it.
    """
    facts = path.stat()
    key = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    if facts.st_size >= BIG and key in _big_files:
        return _big_files[key]
    with path.open("rb") as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
    if facts.st_size >= BIG:
        _big_files[key] = value
    return value


def folder_digest(folder: Path) -> str:
    """SHA-256 of the names and contents of all files in a folder, at any depth, but hidden ones and caches."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder) for path in files]
    return digest(
        {
            str(name): file_digest(folder / name)
            for name in names
            if not any(part.startswith(".") or part == "__pycache__" for part in name.parts)
        }
    )


def digest(value: Any) -> str:
    """SHA-256 of plain data, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Versions of alignkit and of the libraries that determine a result's numbers.

    packages: others that take part, such as a trainer's.
    """
    names = ("torch", "transformers", "tokenizers", "peft", *packages)
    return {"alignkit": alignkit.__version__, **{name: _version(name) for name in names}}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def model_digest(source: str) -> Any:
    """Identifies a model's weights, tokenizer and template: digests of a folder's files, or the hub id itself."""
    folder = Path(source)
    if not folder.is_dir():
        return source
    kinds = (".safetensors", ".bin", ".json", ".jinja", ".py", ".model", ".txt", ".tiktoken")
    files = [file for file in folder.iterdir() if file.suffix in kinds and file.is_file()]
    files += folder.glob("additional_chat_templates/*.jinja")
    return {file.relative_to(folder).as_posix(): file_digest(file) for file in sorted(files)}
