"""What identifies the things that a result depends on: files, code, models, commits, libraries and
plain data.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import sys
import sysconfig
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Literal

import alignkit

BIG = 2**26  # bytes; hashing takes one to three seconds per GiB


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes.

    A big file is hashed once per process, unless it changes. The kernel's own time of change tells:
    unlike the time of modification, no program can set it.
    """
    facts = path.stat()
    if facts.st_size < BIG:
        return _hashed(path)
    return _hashed_once(path, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


def _hashed(path: Path, *facts: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_hashed_once = cache(_hashed)


def folder_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of all files in a folder, at any depth, but hidden ones and caches, by name."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in name.parts)
        if path.is_file() and not hidden:
            digests[name.as_posix()] = file_digest(path)
    return digests


def folder_digest(folder: Path) -> str:
    """SHA-256 of the names and contents of these files."""
    return digest(folder_digests(folder))


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
    """Identifies a model's weights, tokenizer and template: digests of a folder's files, or the hub
    id itself.
    """
    folder = Path(source)
    if not folder.is_dir():
        return source
    # Not folders next to the weights, such as those of other formats, which take seconds for each
    # GiB.
    kinds = (".safetensors", ".bin", ".json", ".jinja", ".py", ".model", ".txt", ".tiktoken")
    files = [file for file in folder.iterdir() if file.suffix in kinds and file.is_file()]
    files += folder.glob("additional_chat_templates/*.jinja")
    return {file.relative_to(folder).as_posix(): file_digest(file) for file in sorted(files)}


# Code of users


_PACKAGE = Path(alignkit.__file__).resolve().parent
# Folders of alignkit, in a checkout, and of the standard library.
_FOREIGN = (
    _PACKAGE,
    _PACKAGE.parent / "plugins",
    *(Path(sysconfig.get_path(n)) for n in ("stdlib", "platstdlib")),
)
_IMPORTS = re.compile(r"^\s*(?:from|import)\s+(.+)", re.MULTILINE)


def source_digests(file: Path | None) -> dict[str, str] | None:
    """Digests by name of a file, all files of its package, and the user's own modules that these
    import.

    A module is the user's own if it is neither alignkit's, nor of the standard library, nor
    installed: the versions of installed packages tell their contents. None without a file.
    """
    if file is None or not file.is_file():
        return None
    digests, waiting = dict[str, str](), [_whole(file)]
    for whole in waiting:  # the list grows meanwhile
        if whole.is_dir():
            found = {f"{whole.name}/{name}": value for name, value in folder_digests(whole).items()}
        else:
            found = {whole.name: file_digest(whole)}
        digests |= found
        if is_foreign(whole):
            continue
        code = [
            (whole.parent / path).read_text("utf-8", "replace")
            for path in found
            if path.endswith(".py")
        ]
        imported = re.findall(r"\w+", " ".join(_IMPORTS.findall("\n".join(code))))
        for name in sorted(set(imported)):
            spec = PathFinder.find_spec(name, [str(whole.parent), *sys.path])
            if spec is not None and spec.origin is not None:
                own = _whole(Path(spec.origin))
                if not is_foreign(own) and own not in waiting:
                    waiting.append(own)
    return digests


def module_file(name: str) -> Path | None:
    """The file of the user's own module in `package.module:name`; None if it is installed."""
    found = PathFinder.find_spec(name.partition(":")[0].partition(".")[0])
    file = found and found.origin and Path(found.origin)
    return file if file and not is_foreign(file) else None


def _whole(file: Path) -> Path:
    """A module, or the outermost package that it is in."""
    whole = file.resolve()
    while (whole.parent / "__init__.py").is_file():
        whole = whole.parent
    return whole


def is_foreign(path: Path) -> bool:
    """Whether a file is alignkit's, of the standard library, or of an installed package."""
    installed = {"site-packages", "dist-packages"}.intersection(path.parts)
    return bool(installed) or any(map(path.is_relative_to, _FOREIGN))


# Copies of the hub

Kind = Literal["dataset", "model"]
TIMEOUT = 5  # seconds to wait for the hub's answer


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit, which no branch or tag can move."""
    return re.fullmatch(r"[0-9a-f]{40}", revision or "") is not None


def commit_of(kind: Kind, name: str, revision: str | None) -> str | None:
    """The commit that a revision means now; offline, that of the copy in the hub's cache."""
    if is_commit(revision):
        return revision
    from huggingface_hub import HfApi

    # Errors are of many kinds; whoever loads it looks into the cache, or says what is wrong.
    with suppress(Exception):
        return (
            HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=TIMEOUT).sha
            or revision
        )
    copy = _copy(kind, name, revision)
    if copy is not None:
        return copy.name
    return revision


def cached_snapshot(source: str, revision: str | None) -> Path | None:
    """The folder of a cached copy of a model, if it has a configuration and weights."""
    copy = _copy("model", source, revision)
    if (
        copy is not None
        and (copy / "config.json").exists()
        and any(copy.glob("model*.safetensors*"))
    ):
        return copy
    return None


def _copy(kind: Kind, name: str, revision: str | None) -> Path | None:
    """The folder of what the hub's cache has of a revision; None without one, or for what is no
    id.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            str(snapshot_download(name, repo_type=kind, revision=revision, local_files_only=True))
        )
    except (HFValidationError, LocalEntryNotFoundError):
        return None
