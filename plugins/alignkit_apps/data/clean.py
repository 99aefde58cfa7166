"""A file without the rows that break a rule, and a list of those: both whole, or not there at all."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from alignkit.arguments import refuse
from alignkit.data.reading import RowReader
from alignkit.errors import BadRow
from alignkit.io.atomic import whole_file
from alignkit.report import Table
from alignkit_apps.data.corpus import Corpus, as_json, parsed, units, unread_text
from alignkit_plugins.data import rules as cleaning
from alignkit_plugins.data.near import Units
from alignkit_plugins.data.rules import Fault, Rules, mark_of, redacted, removed_counts

UNREADABLE = "unreadable"  # in the list of what was left out: no rule, but the format's
COLUMNS = {"at": "int64", "rule": "string", "reason": "string"}


def clean(corpus: Corpus, rules: Rules, out: Path) -> Table:
    """Write the rows that are left, in the layout that they had, and next to it what was left out, row by row.

    Returns the numbers. Raises DataError if no row is left.
    """
    check_target(out, corpus)
    found, personal = faults(corpus, rules)
    counts = removed_counts(found, len(corpus.rows), corpus.name)
    list_of_removed = removed_file(out)
    with written(list_of_removed) as removed, written(out) as kept:
        for at, raw in enumerate(raw for batch in corpus.rows.iter(corpus.together) for raw in batch["raw"]):
            if at in found:
                file, row = corpus.where(at)
                said = {"reason": found[at].reason, "data": json.loads(raw) if raw else None}
                said = redacted(said) if rules.personal else said
                removed.write(as_json({"file": file, "row": row, "rule": found[at].rule, **said}))
            else:
                kept.write(_line(raw, at in personal))
    left = len(corpus.rows) - len(found)
    first = min((at for at, fault in found.items() if fault.rule == UNREADABLE), default=-1)
    note = "" if first < 0 else unread_text(counts[UNREADABLE], corpus.where(first), found[first].reason)
    title = f"{out}: {left:,} of {len(corpus.rows):,} rows; {list_of_removed.name} says why"
    return cleaning.table(title, counts, left, len(personal - found.keys()), note)


def removed_file(out: Path) -> Path:
    """The file next to the cleaned one that says what was left out."""
    return out.with_name(f"{out.name.removesuffix('.gz').removesuffix('.jsonl')}.removed.jsonl")


def _line(raw: str, personal: bool) -> bytes:
    """A row of the output. One of a text file is a text. personal: whether to redact it."""
    if not personal and not raw.startswith('"'):
        return f"{raw}\n".encode()
    row = redacted(json.loads(raw)) if personal else json.loads(raw)
    return as_json({"text": row} if isinstance(row, str) else row)


def check_target(out: Path, corpus: Corpus, option: str = "--out") -> None:
    """Raise RecipeError for a file that is not JSON lines, or that the rows come from."""
    if not out.name.endswith((".jsonl", ".jsonl.gz")):
        refuse(f"{option} {out}: JSON lines are written", f"name it {out.with_suffix('.jsonl').name}")
    sources = [source.path for source in corpus.spec.sources if source.path is not None]
    if any(file.exists() and file.samefile(path) for path in sources for file in (out, removed_file(out))):
        refuse(f"{option} {out}: is what the rows come from, which is never changed", "name another file")


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, compressed if it is called so; the same rows give the same bytes."""
    with whole_file(path) as file:
        if path.suffix != ".gz":
            yield file
            return
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as stream:
            yield stream  # type: ignore[misc]


def faults(corpus: Corpus, rules: Rules) -> tuple[dict[int, Fault], set[int]]:
    """Why rows are to be left out, by their places; and the rows to redact."""
    marks = rules.marked(reader.source.name for reader in corpus.readers)
    options = [rules.model_dump(mode="json", include=set(Rules.model_fields)), sorted(marks.items())]
    table = corpus.mapped("applying rules", _judged, COLUMNS, options, rules=rules, marks=marks)
    columns = [table[name].to_pylist() for name in COLUMNS]
    found = {at: Fault(rule, reason) for at, rule, reason in zip(*columns, strict=True)}
    personal = {at for at, fault in found.items() if fault.rule == "personal"}
    found = {at: fault for at, fault in found.items() if at not in personal}
    if rules.compares:
        rows = Units.of(units(corpus, ["row"], personal), "row")  # as they will be: redaction makes rows equal
        found |= rules.repeated(rows, found, lambda at: ":".join(map(str, corpus.where(at))))
    return found, personal


def _judged(
    batch: Mapping[str, Any],
    indices: Sequence[int],
    readers: Sequence[RowReader],
    rules: Rules,
    marks: Mapping[tuple[str, int], str],
) -> dict[str, list[Any]]:
    """The rows of a batch that something is wrong with, by themselves: place, rule and reason."""
    lines: list[tuple[Any, ...]] = []
    rows = zip(parsed(batch, indices, readers), batch["raw"], batch["source"], batch["row"], strict=True)
    for (at, groups), raw, source, number in rows:
        fault = mark_of(marks, readers[source].source.name, number)
        if isinstance(groups, BadRow):
            fault = fault or Fault(UNREADABLE, str(groups))
        elif (fault := fault or rules.fault(groups)) is None and rules.personal:
            fault = Fault("personal", "") if redacted(row := json.loads(raw)) != row else None
        lines += [(at, *fault)] if fault else []
    return {name: [line[place] for line in lines] for place, name in enumerate(COLUMNS)}
