"""The files that code of users reads or runs while it is imported or called, such as lists of words.
No recipe names them, but results depend on them.

An audit hook of Python sees every file that is opened, every folder that is listed, and all code
that is run, also in processes that this one forks, but not what C code and other programs open by
themselves, nor a question whether a file exists. A file counts if the nearest code that is no
library's is the user's.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from alignkit.io.digest import digest, file_digest, is_foreign
from alignkit.io.text import is_file

_ours = {"alignkit"}
# Folders of the system, and of accounts and caches of the user
_ELSEWHERE = ("<", "/proc/", "/sys/", "/dev/", "/etc/", "/usr/", os.path.expanduser("~/."))
_log: list[int] = []  # a file without a name that forked processes write, too
_logged = set[str]()


def watch(ours: Iterable[str]) -> None:
    """Note what is opened from now on. Python cannot remove a hook, so it is added once.

    ours: the packages that come with alignkit, next to its own.
    """
    _ours.update(ours)
    if not _log:
        with tempfile.TemporaryFile() as file:
            _log.append(os.dup(file.fileno()))
        sys.addaudithook(_opened)


def _opened(event: str, args: tuple[Any, ...]) -> None:
    if event in ("open", "os.rename", "exec", "os.listdir", "os.scandir"):
        with suppress(Exception):  # the code that opens the file would get it
            frame = sys._getframe(1)
            path, how = _access(event, args, frame)
            file = os.path.abspath(os.fsdecode(path))
            users = _users(frame) if how and not _is_library(file) else []
            line = json.dumps([file, how, users]) + "\n"
            if users and line not in _logged:
                _logged.add(line)
                os.write(_log[0], line.encode())


def _access(event: str, args: tuple[Any, ...], frame: FrameType) -> tuple[Any, str]:
    """A path, and what is done with it; empty if that does not count."""
    if event == "os.rename":
        return args[1], "written"
    if event == "exec":  # also of a module that Python has compiled before
        return args[0].co_filename, "read"
    if event != "open":  # a folder, in which an import only looks for its module
        return args[0] or ".", "" if "importlib" in frame.f_code.co_filename else "listed"
    if args[2] & (os.O_WRONLY | os.O_RDWR):
        return args[0], "written"
    return args[0], "read" if os.path.lexists(args[0]) else "missed"


def _users(frame: FrameType | None) -> list[str]:
    """The user's files whose code opens a file; none if alignkit or a traceback does."""
    files = list[str]()
    while frame:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package in _ours or (package == "linecache" and not files):
            break
        if not _is_library(frame.f_code.co_filename):
            files.append(os.path.abspath(frame.f_code.co_filename))
        frame = frame.f_back
    return files


@cache
def _is_library(file: str) -> bool:
    return file.startswith(_ELSEWHERE) or is_foreign(Path(file).absolute())


def files_read(parts: Any, run: Path) -> list[str]:
    """What lies outside of a run's folder and the code behind a stage's key has read, and not
    written: files, files that it did not find, and `FOLDER/` for folders that it has listed.

    parts: what the key is made of, with digests of the code.
    """
    lines = os.pread(_log[0], os.fstat(_log[0]).st_size, 0).splitlines() if _log else []
    code = json.dumps(parts, default=str)
    paths: dict[str, set[str]] = {how: set() for how in ("read", "written", "listed", "missed")}
    for file, how, users in map(json.loads, lines):
        if any(is_file(user) and file_digest(Path(user)) in code for user in users):
            paths[how].add(file)
    known = {file for file in paths["read"] if is_file(file) and file_digest(Path(file)) in code}
    found = {*filter(is_file, paths["read"] - known)}
    found |= {file for file in paths["missed"] if not os.path.lexists(file)}
    own = {*map(os.path.dirname, paths["written"])}
    found |= {os.path.join(folder, "") for folder in paths["listed"] - own if os.path.isdir(folder)}
    outside = (f for f in found - paths["written"] if not Path(f).is_relative_to(run.absolute()))
    return sorted(file for file in outside if not file.endswith(".pyc"))


def digest_of(name: str) -> str:
    """The digest of what `files_read` names: a file's bytes, or the names of a folder's files."""
    if not name.endswith(os.sep):
        return file_digest(Path(name)) if is_file(name) else "missing"
    if not os.path.isdir(name):
        return "missing"
    return digest(sorted(each.name for each in os.scandir(name) if each.is_file()))
