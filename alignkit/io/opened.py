"""The files that code of users reads or runs while it is imported or called, such as lists of words.
No recipe names them, but results depend on them.

An audit hook of Python sees every file that is opened, and all code that is run, also in processes
that this one forks, but not what C code and other programs open by themselves. A file counts if the
nearest code that is no library's is the user's.
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

from alignkit.io.digest import file_digest, is_foreign
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
    if event in ("open", "os.rename", "exec"):
        with suppress(Exception):  # the code that opens the file would get it
            if event == "exec":  # also of a module that Python has compiled before
                path, flags = args[0].co_filename, os.O_RDONLY
            else:
                path, _, flags = args if event == "open" else (args[1], "", os.O_WRONLY)
            file = os.path.abspath(os.fsdecode(path))
            users = [] if _is_library(file) else _users(sys._getframe(1))
            line = json.dumps([file, bool(flags & (os.O_WRONLY | os.O_RDWR)), users]) + "\n"
            if users and line not in _logged:
                _logged.add(line)
                os.write(_log[0], line.encode())


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
    """The files outside of a run's folder that the code behind a stage's key has read, and not
    written.

    parts: what the key is made of, with digests of the code.
    """
    lines = os.pread(_log[0], os.fstat(_log[0]).st_size, 0).splitlines() if _log else []
    code, read, written = json.dumps(parts, default=str), set[str](), set[str]()
    for file, writes, users in map(json.loads, lines):
        if any(is_file(user) and file_digest(Path(user)) in code for user in users):
            (written if writes else read).add(file)
    read = {file for file in read - written if is_file(file) and not file.endswith(".pyc")}
    known = {file for file in read if file_digest(Path(file)) in code}
    return sorted(f for f in read - known if not Path(f).is_relative_to(run.absolute()))
