"""A file without the rows that break a rule, and a list of those: both whole, or not there at all."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from alignkit.arguments import refuse
from alignkit.data.reading import RowReader
from alignkit.errors import BadRow, DataError
from alignkit.io.atomic import whole_file
from alignkit.report import Table
from alignkit_apps.cleaning.near import Units
from alignkit_apps.cleaning.rules import Fault, Rules, mark_of, redacted
from alignkit_apps.data.corpus import TOGETHER, Corpus, as_json, parsed, units, unread_text

UNREADABLE = "unreadable"  # in the list of what was left out: no rule, but the format's

COLUMNS = {"at": "int64", "rule": "string", "reason": "string"}


@dataclass(frozen=True)
class Cleaned:
    """What was written. removed: rows left out, by rule. redacted: rows that were changed.

    unread: how many cannot be read, and why not.
    """

    rows: int
    kept: int
    removed: Mapping[str, int]
    redacted: int
    unread: str

    def table(self, out: Path) -> Table:
        rows = [[f"left out: {rule}", f"{count:,}"] for rule, count in self.removed.items()]
        rows += [["kept", f"{self.kept:,}"], ["of these redacted", f"{self.redacted:,}"]]
        title = f"{out}: {self.kept:,} of {self.rows:,} rows; {removed_file(out).name} says why"
        return Table(title, ["rows", "number"], rows, note=self.unread)


def removed_file(out: Path) -> Path:
    """The file next to the cleaned one that says what was left out."""
    return out.with_name(f"{out.name.removesuffix('.gz').removesuffix('.jsonl')}.removed.jsonl")


def clean(corpus: Corpus, rules: Rules, out: Path) -> Cleaned:
    """Write the rows that are left, in the layout that they had, and next to it what was left out, row by row.

    Raises DataError if no row is left.
    """
    check_target(out, corpus)
    found, changed = faults(corpus, rules)
    if len(found) == len(corpus.rows):
        counts = Counter(fault.rule for fault, _ in found.values())
        raise DataError(f"{corpus.name}: no row is left: {', '.join(f'{r} {n:,}' for r, n in counts.most_common())}")
    with written(removed_file(out)) as removed, written(out) as kept:
        for start in range(0, len(corpus.rows), TOGETHER):
            for at, raw in enumerate(corpus.rows[start : start + TOGETHER]["raw"], start):
                if at in found:
                    removed.write(_left_out(corpus, at, raw, *found[at]))
                else:
                    kept.write(_line(raw, at in changed))
    counts = Counter(fault.rule for fault, _ in found.values())
    left = len(corpus.rows) - len(found)
    bad = min((at for at, (fault, _) in found.items() if fault.rule == UNREADABLE), default=None)
    unread = "" if bad is None else unread_text(counts[UNREADABLE], corpus.where(bad), found[bad][0].reason)
    return Cleaned(len(corpus.rows), left, dict(sorted(counts.items())), len(changed - found.keys()), unread)


def _left_out(corpus: Corpus, at: int, raw: str, fault: Fault, other: int | None) -> bytes:
    file, row = corpus.where(at)
    same = "" if other is None else f" {':'.join(map(str, corpus.where(other)))}"
    facts = {"file": file, "row": row, "rule": fault.rule, "reason": fault.reason + same}
    return (as_json({**facts, "data": json.loads(raw) if raw else None}) + "\n").encode()


def _line(raw: str, personal: bool) -> bytes:
    """A row of the output. One of a text file is a text. personal: whether to redact it."""
    if personal or raw.startswith('"'):
        row = redacted(json.loads(raw)) if personal else json.loads(raw)
        raw = as_json({"text": row} if isinstance(row, str) else row)
    return (raw + "\n").encode()


def check_target(out: Path, corpus: Corpus) -> None:
    """Raise RecipeError for a file that is not JSON lines, or that the rows come from."""
    if not out.name.endswith((".jsonl", ".jsonl.gz")):
        refuse(f"--out {out}: JSON lines are written", f"name it {out.with_suffix('.jsonl').name}")
    for source in corpus.spec.sources:
        if source.path is not None and any(
            file.exists() and file.samefile(source.path) for file in (out, removed_file(out))
        ):
            refuse(f"--out {out}: is what the rows come from, which is never changed", "name another file")


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, compressed if it is called so; the same rows give the same bytes."""
    with whole_file(path) as file:
        if path.suffix != ".gz":
            yield file
            return
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as stream:
            yield stream  # type: ignore[misc]


def faults(corpus: Corpus, rules: Rules) -> tuple[dict[int, tuple[Fault, int | None]], set[int]]:
    """Why rows are to be left out, by their places, with the row that each repeats; and the rows to redact.

    Also what a page shows of each row; the rows that somebody marks there come back as `Rules.marks`.
    """
    options = rules.model_dump(mode="json")
    table = corpus.mapped("applying rules", judged, COLUMNS, options, readers=corpus.readers, rules=rules).data
    found: dict[int, tuple[Fault, int | None]] = {}
    rows, names, reasons = (table.column(name).to_pylist() for name in ("at", "rule", "reason"))
    changed = {at for at, name in zip(rows, names, strict=True) if name == "personal"}
    marks = rules.marked()
    for at, name, reason in zip(rows, names, reasons, strict=True):
        if name != "personal":
            found[at] = Fault(name, reason), None
    if marks:
        files = [source.name for source in corpus.spec.sources]
        sources, numbers = (corpus.rows.data.column(name).to_pylist() for name in ("source", "row"))
        for at, (source, number) in enumerate(zip(sources, numbers, strict=True)):
            if mark := mark_of(marks, files[source], number):
                found[at] = mark, None
    if rules.compares:
        texts = units(corpus, ["row"])
        import numpy as np

        rest = Units.of(texts, "row", texts.text).without(np.asarray(sorted(found), dtype=np.int64))
        found |= rules.duplicate_faults(rest)
    return found, changed


def judged(
    batch: Mapping[str, Any], indices: Sequence[int], readers: Sequence[RowReader], rules: Rules
) -> dict[str, list[Any]]:
    """The rows of a batch that something is wrong with, by themselves: place, rule and reason."""
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for (at, groups), raw in zip(parsed(batch, indices, readers), batch["raw"], strict=True):
        bad = isinstance(groups, BadRow)
        fault = Fault(UNREADABLE, str(groups)) if isinstance(groups, BadRow) else rules.fault(groups)
        if fault is None and rules.personal and not bad and redacted(row := json.loads(raw)) != row:
            fault = Fault("personal", "")
        if fault:
            for name, value in zip(columns, (at, *fault), strict=True):
                columns[name].append(value)
    return columns
