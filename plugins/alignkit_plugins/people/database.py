"""The SQLite file of a store: opened, checked, and its errors in words."""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from alignkit.errors import AlignkitError, DataError, OutOfResource

SUFFIX = ".feedback"
VERSION = 2  # PRAGMA user_version
APPLICATION = 0x616C6B66  # PRAGMA application_id: "alkf"
PATIENCE = 5000  # milliseconds to wait for another writer
REMOTE = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "sshfs",
    "fuse.",
    "afs",
    "ceph",
    "lustre",
    "gluster",
    "beegfs",
)

SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE guidelines (hash TEXT PRIMARY KEY, text TEXT NOT NULL, created TEXT NOT NULL) STRICT;
CREATE TABLE items (
    position INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    revision INTEGER NOT NULL DEFAULT 1,
    task TEXT NOT NULL,
    content TEXT NOT NULL,
    license TEXT NOT NULL,
    author TEXT NOT NULL,
    batch TEXT NOT NULL,
    gold TEXT,
    priority REAL NOT NULL,
    retired INTEGER NOT NULL DEFAULT 0,
    wanted INTEGER NOT NULL DEFAULT 1,
    labels INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX open_items ON items (priority DESC, position) WHERE labels < wanted AND retired = 0 AND gold IS NULL;
CREATE TABLE events (
    number INTEGER PRIMARY KEY,
    uuid TEXT NOT NULL UNIQUE,
    item TEXT REFERENCES items (id),
    revision INTEGER NOT NULL,
    annotator TEXT NOT NULL,
    kind TEXT NOT NULL,
    payload TEXT NOT NULL,
    undone TEXT,
    guidelines TEXT NOT NULL,
    display_order TEXT NOT NULL,
    seconds REAL,
    created TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_item ON events (item, annotator, created);
CREATE INDEX events_by_annotator ON events (annotator, kind, created);
CREATE INDEX events_by_time ON events (created);
CREATE INDEX undone_events ON events (undone) WHERE undone IS NOT NULL;
CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE (ABORT, 'events are never changed'); END;
CREATE TRIGGER events_are_kept BEFORE DELETE ON events BEGIN SELECT RAISE (ABORT, 'events are never deleted'); END;
CREATE TABLE leases (
    item TEXT NOT NULL REFERENCES items (id),
    annotator TEXT NOT NULL,
    until REAL NOT NULL,
    PRIMARY KEY (item, annotator)
) STRICT;
CREATE VIEW effective AS
    SELECT * FROM events AS e
    WHERE kind <> 'undo' AND NOT EXISTS (SELECT 1 FROM events AS u WHERE u.undone = e.uuid);
-- What each annotator last said about an item: a label, or that there will be none. Kept, so that the next item is
-- found at once.
CREATE TABLE current (
    annotator TEXT NOT NULL,
    item TEXT NOT NULL,
    kind TEXT NOT NULL,
    uuid TEXT NOT NULL,
    created TEXT NOT NULL,
    PRIMARY KEY (annotator, item)
) STRICT, WITHOUT ROWID;
CREATE INDEX current_by_item ON current (item);
"""


def connected(path: Path, *, write: bool = True) -> sqlite3.Connection:
    """A connection to an existing store. Raises `DataError` for a file that is none, damaged, or of
    another version.
    """
    if path.is_dir():
        raise DataError(f"{path}: a folder; expected a store of feedback, such as labels.feedback")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; expected a store of feedback")
    with closing(_readable(path)) as probe:
        _check(probe, path)
    connection = _readable(path) if not write else _raw(path, "rw")
    try:
        with in_words(path):
            _configure(connection, path, write)
    except (AlignkitError, sqlite3.Error):
        connection.close()
        raise
    return connection


def create(path: Path) -> None:
    """Make an empty store, which appears under its name when it is complete. Leaves an existing
    file as it is.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.alignkit-tmp")
    new.unlink(missing_ok=True)
    try:
        with in_words(path), closing(sqlite3.connect(new, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            salt = f"INSERT INTO settings VALUES ('salt', '\"{secrets.token_hex(16)}\"');"
            connection.executescript(
                f"BEGIN; {SCHEMA} {salt} PRAGMA user_version = {VERSION}; COMMIT;"
            )
        _appear(new, path)
    finally:
        new.unlink(missing_ok=True)


def _appear(new: Path, path: Path) -> None:
    """Let a new store have its name, unless another process was faster, whose store may already
    hold labels.
    """
    try:
        os.link(new, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not path.exists():
            os.replace(new, path)


def is_remote(path: Path) -> bool:
    """Whether a file is on a network file system, on which SQLite's write-ahead log loses data."""
    import psutil

    full = path.resolve()
    mounts = {
        Path(part.mountpoint): part.fstype.lower() for part in psutil.disk_partitions(all=True)
    }
    kind = next((mounts[folder] for folder in (full, *full.parents) if folder in mounts), "")
    return kind.startswith(REMOTE)


def _raw(path: Path, mode: str) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(
        address, uri=True, isolation_level=None, timeout=PATIENCE / 1000, check_same_thread=False
    )


def tidy(path: Path) -> None:
    """Let SQLite delete the -wal and -shm files that a connection that only reads cannot, unless
    others use them.
    """
    with suppress(sqlite3.Error), closing(_raw(path, "rw")) as connection:
        connection.execute("PRAGMA schema_version")


def _readable(path: Path) -> sqlite3.Connection:
    """A connection that only reads. In a folder that cannot be written, nobody else writes
    either.
    """
    with in_words(path):
        connection = _raw(path, "ro")
        try:
            connection.execute("PRAGMA schema_version")
        except sqlite3.Error as error:
            connection.close()
            if (
                error.sqlite_errorcode != sqlite3.SQLITE_CANTOPEN
                or path.with_name(f"{path.name}-wal").exists()
            ):
                raise
            connection = _raw(path, "ro&immutable=1")
        return connection


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """Raise `DataError` unless this is a whole store that this alignkit can read."""
    with in_words(path):
        if path.stat().st_size == 0:
            raise DataError(
                f"{path}: the file is empty; a store was copied in part. Copy it again, or delete "
                "it"
            )
        found = connection.execute("PRAGMA application_id").fetchone()[0]
        if found != APPLICATION:
            raise DataError(f"{path}: a SQLite file of another program, not a store of feedback")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version != VERSION:
            raise DataError(
                f"{path}: written by another alignkit (version {version} of the store; this one "
                f"reads {VERSION})"
            )
        faults = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
        if faults != ["ok"]:
            raise DataError(f"{path}: {_damaged()} SQLite says: {'; '.join(faults)}")


def _configure(connection: sqlite3.Connection, path: Path, write: bool) -> None:
    connection.row_factory = sqlite3.Row
    connection.execute(f"PRAGMA busy_timeout = {PATIENCE}")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA foreign_keys = ON")
    if write:
        connection.execute(f"PRAGMA journal_mode = {'DELETE' if is_remote(path) else 'WAL'}")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA fullfsync = ON")  # macOS: until the disk has it


def _damaged() -> str:
    return (
        "the store is damaged: it was perhaps copied in part, or while it was used. Copy it again."
    )


@contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Raise errors of SQLite as errors that users understand."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            text = (
                _damaged()
                if code == sqlite3.SQLITE_CORRUPT
                else "not a SQLite file, so not a store of feedback."
            )
            raise DataError(f"{path}: {text} SQLite says: {error}") from error
        if code == sqlite3.SQLITE_FULL:
            raise OutOfResource(
                f"{path}: the disk is full, so nothing was stored; free some space"
            ) from error
        if code in (
            sqlite3.SQLITE_READONLY,
            sqlite3.SQLITE_IOERR,
            sqlite3.SQLITE_CANTOPEN,
            sqlite3.SQLITE_PERM,
        ):
            raise OutOfResource(f"{path}: cannot use the store: {error}") from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise DataError(
                f"{path}: another program has been writing for {PATIENCE // 1000} seconds; "
                "nothing was stored. Close it, or try again"
            ) from error
        raise
