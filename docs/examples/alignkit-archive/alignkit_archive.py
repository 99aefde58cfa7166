"""Base models from archives, and the chat template of a lab: `base: archive://models/small.tar.gz`.

The archive is a .zip or .tar file with a transformers folder, on this machine or at an address. For a
private hub or another format of weights, change the body of the function: it leaves a folder below
the cache.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import urllib.request
from pathlib import Path

from alignkit import Add, RunFailed, hookimpl

LAB = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ 'A: ' + m['content'] + eos_token }}"
    "{% else %}{{ 'Q: ' + m['content'] }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A:' }}{% endif %}"
)


def source(cache: Path, path: str) -> Path:
    """The folder in an archive, unpacked once per content. path: a file, or an address that begins
    with https://.
    """
    with tempfile.TemporaryDirectory(prefix=".archive-", dir=cache) as temporary:
        archive = _fetched(path, Path(temporary))
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        target = cache / f"archive-{digest[:16]}"
        if not target.is_dir():  # a rename is atomic: the folder is complete, or it is not there
            _unpacked(archive, Path(temporary) / "unpacked").rename(target)
    return target


def _fetched(path: str, folder: Path) -> Path:
    if not path.startswith("https://"):
        return Path(path)
    target = folder / path.rpartition("/")[2]
    with urllib.request.urlopen(path, timeout=60) as response, target.open("wb") as file:
        shutil.copyfileobj(response, file)
    return target


def _unpacked(archive: Path, folder: Path) -> Path:
    try:
        if archive.name.endswith(".zip"):  # zipfile itself writes nothing outside of the folder
            shutil.unpack_archive(archive, folder)
        else:
            shutil.unpack_archive(archive, folder, filter="data")
    except (OSError, ValueError, shutil.ReadError) as error:
        raise RunFailed(f"model 'archive': {archive} cannot be unpacked: {error}") from error
    found = sorted(folder.rglob("config.json"))
    if not found:
        raise RunFailed(
            f"model 'archive': {archive} holds no transformers folder, which has a config.json"
        )
    return found[0].parent


@hookimpl
def register(add: Add) -> None:
    add(
        "model", "archive", source, "a transformers folder in a .zip or .tar file, or at an address"
    )
    add("template", "lab", LAB, "Q: and A:, ended by the EOS token")
