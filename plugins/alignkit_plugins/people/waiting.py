"""A run asks people: its items are put into a store, and it stops until they have enough labels.

Only labels of the items that a stage asks now count. Items that it asked before, of another version
of its data, are retired: nobody is asked about them again, and their labels stay in the store.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignkit.errors import DataError, RunFailed, StageWaits
from alignkit_plugins.people import records
from alignkit_plugins.people.asking import guidelines_of
from alignkit_plugins.people.effective_labels import Labeled, labeled
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.store import Store

STORE = "labels.feedback"  # of a run, in its folder


class NobodyAsked(RunFailed):
    """A stage needs people where nobody is asked, as when it is verified."""


@dataclass(frozen=True)
class Tally:
    """How far the items of a stage are.

    done: items with enough labels, or a settled one. aside: others that somebody flagged or
    skipped. needed: items that must be done. missing: labels until then. short: how many items of
    `aside` are needed, too.
    """

    done: int
    aside: int
    needed: int
    missing: int
    short: int


def labels_of(
    path: Path,
    items: Sequence[Item],
    *,
    needed: int | None = None,
    annotators: int = 1,
    stage: str,
    folder: Path | None = None,
    gold: Sequence[Item] = (),
    guidelines: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Labeled]:
    """The items, in their order and each once, with what people said about them.

    They are added to the store at `path`, which is made if it is not there. needed: how many of
    them must have labels by `annotators` people; None: all that nobody flagged or skipped. folder:
    of the stage, so that runs that share a store do not retire each other's items. gold: items with
    gold labels, mixed in. guidelines: a file for labelers.

    Raises StageWaits until there are enough labels, DataError for a store that cannot be used, if
    `needed` is more than there are items, or if labelers would read the guidelines of another
    stage, BadRow for an item that nobody could label, and NobodyAsked while a stage is verified.
    """
    from alignkit_plugins.ai_feedback.remote import (
        asking_is_allowed,  # imports asyncio, which `alignkit check` can spare
    )

    if not asking_is_allowed():
        raise NobodyAsked(f"stage '{stage}' needs labels of people, and nobody is asked here")
    unique = list({item.id: item for item in items}.values())
    if needed is not None and needed > len(unique):
        raise DataError(
            f"stage '{stage}': labels of {needed} items are wanted, but there are only "
            f"{len(unique)}"
        )
    for item in (*unique, *gold):
        item.checked()
    batch = stage
    if folder is not None:  # a link, so that its name stays
        batch = Path(
            os.path.relpath(folder.parent.resolve() / folder.name, path.parent.resolve())
        ).as_posix()
    with Store.open(path, new=True) as store:
        for warning in store.warnings:
            say(f"warning: {warning}")
        _hand_out(store, guidelines, stage, batch)
        store.ask([*unique, *gold], batch, annotators)
        found = {
            entry.stored.item.id: entry for entry in labeled(store, [item.id for item in unique])
        }
        entries = [found[item.id] for item in unique]
        tally = tally_of(entries, needed, annotators)
        if tally.done < tally.needed:
            _reopen(store, entries, annotators)
            raise _labels_needed(tally, annotators, stage, path)
        _close(store, batch)
    return entries


def _hand_out(store: Store, path: Path | None, stage: str, batch: str) -> None:
    """Put a stage's guidelines where the page finds them. Raises DataError if others would be read
    for its items.
    """
    own = "" if path is None else os.path.relpath(path, store.path.parent)
    # The page shows the last ones. Those of a stage that has its labels do not matter to one that
    # sets others.
    others = store.rows(
        "SELECT DISTINCT batch, value FROM items JOIN settings ON name = 'guidelines of ' || batch "
        "WHERE batch <> ? AND (? = '' OR (retired = 0 AND gold IS NULL AND labels < wanted))",
        *(batch, own),
    )
    for row in others:
        if row["value"] != own:
            mine, theirs = (name or "none" for name in (own, row["value"]))
            raise DataError(
                f"its guidelines are {mine} and those of stage '{row['batch']}' are {theirs}, but "
                f"both ask in {store.path}, whose labelers read one set\n"
                f"help: write 'store: {stage}.feedback', or give both the same 'guidelines'"
            )
    if path is not None:
        store.add_guidelines(guidelines_of(path))
    with store.transaction() as connection:
        connection.execute(
            "INSERT OR REPLACE INTO settings VALUES (?, ?)", (f"guidelines of {batch}", own)
        )


def tally_of(entries: Sequence[Labeled], needed: int | None, annotators: int) -> Tally:
    """How far items are, of which `needed` must each be labeled by `annotators` people; see
    `labels_of`.
    """
    lacking = [(_lacking(entry, annotators), bool(entry.waits or entry.skips)) for entry in entries]
    done = sum(not lack for lack, _ in lacking)
    aside = sum(off for lack, off in lacking if lack)
    needed = max(len(entries) - aside, min(1, len(entries))) if needed is None else needed
    left = sorted(lack for lack, off in lacking if lack and not off)[: max(0, needed - done)]
    return Tally(done, aside, needed, sum(left), max(0, needed - done - len(left)))


def _lacking(entry: Labeled, annotators: int) -> int:
    """How many labels an item lacks."""
    settled = entry.adjudicated is not None or (
        entry.stored.item.gold is not None and not entry.waits
    )
    if settled:
        return 0
    return max(int(entry.waits), annotators - len(entry.votes))


def _reopen(store: Store, entries: Sequence[Labeled], annotators: int) -> None:
    """Let others label what somebody labeled who has withdrawn since."""
    with store.transaction() as connection:
        for entry in entries:
            if (withdrawn := entry.stored.labels - len(entry.votes)) > 0:
                wanted = max(entry.stored.wanted, annotators + withdrawn)
                records.update_item(connection, entry.stored.item.id, {"wanted": wanted})


def _close(store: Store, batch: str) -> None:
    """The stage has enough labels: nobody is asked about the rest."""
    still_open = "batch = ? AND retired = 0 AND gold IS NULL AND labels < wanted"
    with store.transaction() as connection:
        connection.execute(
            f"UPDATE items SET retired = 1 WHERE {still_open} AND labels = 0", (batch,)
        )
        connection.execute(f"UPDATE items SET wanted = labels WHERE {still_open}", (batch,))


def _labels_needed(tally: Tally, annotators: int, stage: str, path: Path) -> StageWaits:
    done = f"{tally.done} of {tally.needed} items are done"
    lines = [f"stage '{stage}' waits for {tally.missing} label{'s' * (tally.missing != 1)}: {done}"]
    if tally.short:
        lines.append(
            f"  {tally.aside} flagged or skipped, of which {tally.short} needed: adjudicate them "
            "on the page"
        )
    people = " --annotator NAME" * annotators if annotators > 1 else ""
    lines.append(f"  to label: alignkit label {shlex.quote(str(path))}{people}")
    return StageWaits("\n".join(lines), missing=tally.missing, store=path)
