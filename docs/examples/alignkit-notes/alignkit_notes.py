"""Notes in a SQLite file as data of a recipe, a monitor of empty answers, and how long each stage
took.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from alignkit import (
    Add,
    BadRow,
    DataError,
    Field,
    Group,
    Monitor,
    MonitorReport,
    Options,
    Reader,
    hookimpl,
)


class Notes(Reader):
    """The table `notes` with the columns `prompt` and `answer`. The format `prompt_completion`
    reads its rows.
    """

    def rows(self, path: Path) -> Iterator[tuple[int, Any]]:
        for number, (prompt, answer) in enumerate(
            self._read(path, "SELECT prompt, answer FROM notes"), 1
        ):
            row = {"prompt": prompt, "completion": answer}
            yield number, row if answer else BadRow("the note has no answer")

    def facts(self, path: Path) -> Mapping[str, Any]:
        ((count,),) = self._read(path, "SELECT count(*) FROM notes")
        return {"notes": count}

    def _read(self, path: Path, query: str) -> list[Any]:
        try:
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as notes:
                return notes.execute(query).fetchall()
        except sqlite3.Error as error:
            raise DataError(f"{path}: not a file of notes: {error}") from error


class Silence(Monitor):
    """Ends a stage whose answers become empty; its result is the last policy that still
    answered.
    """

    class Options(Options):
        most: float = Field(
            0.5, ge=0, lt=1, description="share of empty answers above which the stage ends"
        )

    best = 0

    def observe(
        self, iteration: int, groups: Sequence[Group], metrics: Mapping[str, Any]
    ) -> MonitorReport:
        empty = [not response.text.strip() for group in groups for response in group.responses]
        share = sum(empty) / max(1, len(empty))
        if share > self.options.most:
            return MonitorReport(
                {"notes/empty": share}, stop=f"{share:.0%} of the answers are empty", best=self.best
            )
        self.best = iteration
        return MonitorReport({"notes/empty": share}, best=iteration)


def times(folder: Path, records: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    """How long the stages took, as a line below the results."""
    took = [f"{record['name']} took {record['seconds']:g} s" for record in records]
    return [f"notes: {', '.join(took)}"]


@hookimpl
def register(add: Add) -> None:
    add("reader", ".notes", Notes, "a table of prompts and answers")
    add("monitor", "silence", Silence, "ends a stage whose answers become empty")
    add("results", "times", times, "how long the stages took")
