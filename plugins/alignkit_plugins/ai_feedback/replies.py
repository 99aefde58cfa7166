"""What a server replied: read, not to be read, or stored on disk."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.errors import RunFailed
from alignkit.io.digest import digest

_TABLES = (
    "create table if not exists checked_replies (key text primary key, value text, digest text)",
    "create table if not exists models (asked text primary key, replied text)",
)


class TryAgain(Exception):
    """An attempt failed, perhaps temporarily. pause: seconds that the server asked for. help: what
    may help.
    """

    def __init__(self, reason: str, pause: float | None = None, help: str = ""):
        super().__init__(reason)
        self.pause, self.help = pause, help


class Malformed(TryAgain):
    """The server's reply cannot be read. It is retried, then given up as unusable. Raised by
    `read`.
    """


@dataclass(frozen=True)
class Reply:
    """A reply as `read` returned it. If it is unusable, `value` is None and `reason` says why."""

    value: Any = None
    reason: str = ""


class ReplyStore:
    """Replies by request, in one SQLite file. Each is on disk before the next request is sent."""

    def __init__(self, folder: Path, name: str):
        folder.mkdir(parents=True, exist_ok=True)
        self._name, self.path = name, folder / f"{name}.sqlite"
        # Every statement commits
        self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        for table in _TABLES:
            self._run(table)

    def _run(self, statement: str, values: Sequence[str] = ()) -> Any:
        """The first row of a statement's result; None without one."""
        try:
            return self._db.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise RunFailed(
                f"{self._name}: cannot use {self.path} ({error}); if it is damaged, delete it"
            ) from None

    def get(self, keys: Sequence[str]) -> dict[str, Reply]:
        """The stored replies to the requests with these keys."""
        known = {}
        for key in keys:
            row = self._run("select value, digest from checked_replies where key = ?", (key,))
            # Else the disk has changed it: ask again
            if row is not None and row[1] == digest([key, row[0]]):
                known[key] = Reply(json.loads(row[0]))
        return known

    def put(self, key: str, value: Any) -> None:
        """Store a value."""
        text = json.dumps(value)
        self._run(
            "insert or replace into checked_replies values (?, ?, ?)",
            (key, text, digest([key, text])),
        )

    def model(self, url: str, asked: str, replied: str) -> str:
        """The model that replied first when `asked` was asked for at this address; `replied` if
        none has.
        """
        key = json.dumps([url, asked])
        self._run("insert or ignore into models values (?, ?)", (key, replied))
        return str(self._run("select replied from models where asked = ?", (key,))[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()
