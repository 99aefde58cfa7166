"""The command `alignkit labels`: a report, export and merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignkit.commands import DefaultGroup, Result, refuse
from alignkit.errors import did_you_mean
from alignkit_plugins.printing import files_written, reported

if TYPE_CHECKING:
    from alignkit_plugins.people.merging import Content


labels_app = typer.Typer(cls=DefaultGroup, rich_markup_mode=None)

StoreFile = Annotated[
    Path, typer.Argument(metavar="STORE", help="Store of labels, such as labels.feedback.")
]


@labels_app.callback(invoke_without_command=True)
def report(
    context: typer.Context,
    store: StoreFile,
) -> Result | None:
    """Report on a store: its labels, people, and how far they agree.

    Agreement with each other and with gold labels is in percent and as Krippendorff's alpha, with
    95% intervals.

    \b
    Example:
      alignkit labels labels.feedback
    """
    if context.invoked_subcommand is not None:
        return None
    if not store.suffix and not store.exists():
        refuse(
            f"no command and no store is called {store}",
            did_you_mean(str(store), ("export", "merge")),
        )
    from alignkit.report import Report
    from alignkit_plugins.people.overview import blocks, overview
    from alignkit_plugins.people.store import Store

    with Store.open(store, write=False) as opened:
        facts = overview(opened)
    return reported(Report(blocks(facts)), "labels", facts)


@labels_app.command()
def merge(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="STORE...", help="Stores, or folders of exports, to add."),
    ],
    into: Annotated[
        Path,
        typer.Option(
            metavar="STORE", help="Store to add them to, which is made if it does not exist."
        ),
    ],
) -> Result:
    """Add the items and labels of stores or exports to a store. Doing it twice changes nothing.

    \b
    Examples:
      alignkit labels merge ann.feedback bob.feedback --into all.feedback
      alignkit labels merge shared-labels --into all.feedback
    """
    from alignkit.errors import DataError
    from alignkit_plugins.people.consent import without_copies
    from alignkit_plugins.people.merging import merge as merged
    from alignkit_plugins.people.store import Store

    contents = [(source, _content(source)) for source in sources]
    if any(into.exists() and source.exists() and source.samefile(into) for source in sources):
        raise DataError(f"{into}: cannot be merged into itself; name another file with --into")
    lines = []
    with Store.open(into, new=True) as target:
        for warning in target.warnings:
            typer.echo(f"warning: {warning}", err=True)
        for source, content in contents:
            done = merged(target, without_copies(content, target), str(source))
            kept = f"; {done.gold} gold labels differ, those of {into} stay" if done.gold else ""
            lines.append(
                f"{source}: {done.items} new items, {done.events} new events, {done.known} known "
                f"ones{kept}"
            )
    return files_written([into], lines, text="\n".join(lines))


@labels_app.command()
def export(
    store: StoreFile,
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the export.")],
    license: Annotated[
        str, typer.Option(metavar="NAME", help="License of items that state none themselves.")
    ] = "",
) -> Result:
    """Write a folder of what may be shared: redacted, with pseudonyms.

    An item needs a license, and everybody whose words are in a row must have agreed to share them.
    The rest is left out and counted. `alignkit data convert` makes other layouts of it.

    \b
    Example:
      alignkit labels export labels.feedback --out shared-labels
    """
    from alignkit_plugins.people.labels_folder import export as exported
    from alignkit_plugins.people.store import Store

    with Store.open(store, write=False) as opened:
        done = exported(opened, out, license)
    notes = [
        f"people: {done.people}; texts in which something was redacted: {done.left_out.redacted}",
        *done.left_out.lines(),
        (
            "Simple rules removed e-mail addresses, telephone numbers and keys, but no names: "
            "read a sample before you publish"
        ),
    ]
    counts = ", ".join(f"{name} ({count})" for name, count in done.files.items())
    return files_written(
        [out / name for name in done.files],
        notes,
        text="\n".join([f"wrote {out}: {counts}", *notes]),
    )


def _content(source: Path) -> Content:
    """What a store or the folder of an export holds."""
    from alignkit_plugins.people.labels_folder import content_of_folder
    from alignkit_plugins.people.merging import content_of
    from alignkit_plugins.people.store import Store

    if source.is_dir():
        return content_of_folder(source)
    with Store.open(source, write=False) as store:
        return content_of(store)
