"""run.log: everything that a run has said, each line with its time, over all its resumptions."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from alignkit.io.credentials import redacted
from alignkit.io.printable import printable


class RunLog:
    """Lines with the time at which they were said (UTC). What is said before `open` is kept until then."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._waiting: list[str] = []

    def open(self, path: Path) -> None:
        """Append to this file from now on."""
        self._path, waiting = path, self._waiting
        self._waiting = []
        self._append(waiting)

    def write(self, text: str) -> None:
        """Append a text without keys and control characters."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        lines = [f"{stamp} {line}".rstrip() + "\n" for line in printable(redacted(text)).split("\n")]
        if self._path is None:
            self._waiting += lines
        else:
            self._append(lines)

    def _append(self, lines: list[str]) -> None:
        # A full disk ends a run where it loses a result; a line that is lost must not hide that error.
        with suppress(OSError):
            if self._path is not None and lines:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write("".join(lines))
