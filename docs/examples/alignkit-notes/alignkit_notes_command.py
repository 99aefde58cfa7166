"""The command `alignkit notes`: write a note. The module is loaded whenever alignkit starts, so it
imports little.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from alignkit import RegisterCommand, hookimpl


def notes(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Such as mine.notes; it is made if it is not there."),
    ],
    prompt: str,
    answer: str,
) -> None:
    """Add a note, from which a recipe can learn."""
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS notes (prompt TEXT, answer TEXT)")
        database.execute("INSERT INTO notes VALUES (?, ?)", (prompt, answer))
        ((count,),) = database.execute("SELECT count(*) FROM notes")
    print(f"{file}: {count} notes")


@hookimpl
def register_commands(register: RegisterCommand) -> None:
    register(notes)
