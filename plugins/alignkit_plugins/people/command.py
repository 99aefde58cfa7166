"""The commands `alignkit label` and `alignkit labels`."""

from __future__ import annotations

import os
import shlex
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignkit.commands import DefaultGroup, Result, refuse
from alignkit.errors import DataError, check_extra, did_you_mean
from alignkit_plugins.printing import files_written, reported

if TYPE_CHECKING:
    from alignkit.data.group import Group
    from alignkit_plugins.people.store import Store

labels_app = typer.Typer(cls=DefaultGroup, rich_markup_mode=None)
StoreFile = Annotated[
    Path, typer.Argument(metavar="STORE", help="Store of labels, such as labels.feedback.")
]


def label(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help=(
                "Data to label: a file in any format, data as in a recipe, or a store (.feedback)."
            ),
        ),
    ],
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help=(
                "Task: pair, safety, ranking, scores, review, demonstration or thumb. Default: "
                "by the responses."
            ),
        ),
    ] = None,
    guidelines: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Guidelines for labelers, in Markdown. Each label records their version.",
        ),
    ] = None,
    gold: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Items with known labels, mixed in unseen, to check the labelers."
        ),
    ] = None,
    qualify: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Number of gold items that everybody answers first, 80% of them right.",
        ),
    ] = 0,
    annotator: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=(
                "Name of a labeler, with attributes if you like: 'ada, degree=PhD'. Repeatable: "
                "each gets an address, and the first one also adjudicates."
            ),
        ),
    ] = None,
    overlap: Annotated[
        int, typer.Option(metavar="N", min=1, help="Number of people who label each item.")
    ] = 1,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=65535,
            help="Port of the page. Default: 8765, or the next free one.",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help=(
                "Address that other machines use, or https://NAME of a proxy in front of this one."
            ),
        ),
    ] = None,
) -> None:
    """Label data on a page in your browser. Ctrl-C stops; the same command continues.

    \b
    Examples:
      alignkit label pairs.jsonl
      alignkit label prompts.jsonl --annotator ada --annotator bob --overlap 2
      alignkit label a.jsonl --annotator ada --host https://labels.example.org
      alignkit label answers.jsonl --task review
      alignkit label pairs.jsonl --gold known.jsonl --guidelines rules.md
      alignkit label '{path: pairs.jsonl, columns: {prompt: question}}'
      alignkit label runs/people/labels.feedback
    """
    from alignkit_plugins.people import server

    check_extra("the page", "label", *server.PACKAGES)
    from alignkit_plugins.people.label_api import LabelApi
    from alignkit_plugins.people.site import Sessions, make_app
    from alignkit_plugins.people.step import guidelines_of

    people = invited(annotator or ())
    with ExitStack() as stack:
        opened = stack.enter_context(prepared(data, None, task, gold, overlap, qualify))
        names, address = server.annotators_of(list(people)), server.address_of(host)
        remember(opened, people)
        if guidelines is not None:
            opened.add_guidelines(guidelines_of(guidelines))
        api = LabelApi(opened, qualify, said_last)
        listener = stack.enter_context(server.listening(port, address))
        sessions = Sessions(names, address=address)
        greet(opened, len(names))
        address.warn(listener)
        server.announce(
            server.addresses_of(address.url(listener), sessions.links),
            "Whoever has an address labels under that name.",
        )
        with suppress(KeyboardInterrupt):
            server.server_of(make_app(api, sessions)).run(sockets=[listener])
        typer.echo(said_last(opened), err=True)


# People


def invited(words: Sequence[str]) -> dict[str, dict[str, str]]:
    """The people of `--annotator NAME, KEY=VALUE, ...`, with their attributes. Raises RecipeError
    for other words.
    """
    people: dict[str, dict[str, str]] = {}
    for word in words:
        name, *pairs = [part.strip() for part in word.split(",")] if "=" in word else [word]
        if name in people:
            help = "each person needs a name of their own, which says whose a label is"
            refuse(f"--annotator {name} is there twice", help)
        people[name] = {}
        for pair in pairs:
            key, _, value = pair.partition("=")
            if not key.strip() or not value.strip():
                refuse(
                    f"--annotator {word}: '{pair}' is no attribute", "write NAME, KEY=VALUE, ..."
                )
            people[name][key.strip()] = value.strip()
    return people


def remember(store: Store, people: Mapping[str, Mapping[str, str]]) -> None:
    """Store what invitations say of people, if it is new."""
    from alignkit_plugins.people.store import Event
    from alignkit_plugins.people.votes import attributes

    known = attributes(store)
    for name, those in people.items():
        if those and known.get(name) != those:
            store.submit(Event(str(uuid.uuid4()), name, "person", {"attributes": dict(those)}))


# Data


def prepared(
    data: str,
    path: Path | None,
    task: str | None = None,
    gold: Path | None = None,
    overlap: int = 1,
    qualify: int = 0,
) -> Store:
    """The store with the items in it.

    Raises RecipeError for wrong arguments, DataError for rows that cannot be labeled.
    """
    from alignkit_plugins.people.items import items_of
    from alignkit_plugins.people.labels import TASKS
    from alignkit_plugins.people.store import SUFFIX, Store

    if task is not None and task not in TASKS:
        refuse(
            f"--task: unknown task '{task}'",
            did_you_mean(task, TASKS) or f"tasks: {', '.join(TASKS)}",
        )
    is_store = data.endswith(SUFFIX)
    groups, name = ([], data.removesuffix(SUFFIX)) if is_store else groups_of(data)
    path = path or Path(f"{name}{SUFFIX}")
    right = items_of(groups_of(str(gold))[0], task, gold=True) if gold else []
    known = {item.id for item in right}
    items = [*right, *(item for item in items_of(groups, task) if item.id not in known)]
    if not items and not is_store:
        raise DataError(f"{data}: there is no row to label")
    store = Store.open(path, new=not is_store)
    try:
        if not is_store:
            batch = data if data.startswith("{") else os.path.relpath(data, path.parent)
            store.ask(items, Path(batch).as_posix(), overlap)
        elif right:
            store.ask(right, "gold")
        if is_store and overlap > 1:
            with store.transaction() as connection:
                connection.execute("UPDATE items SET wanted = ? WHERE retired = 0", (overlap,))
        have = store.count("SELECT 1 FROM items WHERE gold IS NOT NULL AND retired = 0")
        if qualify > have:
            text = f"--qualify {qualify}: the store has only {have} gold item{'s' * (have != 1)}"
            refuse(text, "add rows whose labels are right: --gold FILE")
    except BaseException:
        store.close()
        raise
    return store


def groups_of(data: str) -> tuple[list[Group], str]:
    """The rows of a file, or of a data entry as in a recipe, and a name for their store.

    Raises `RecipeError` if there is no such file, `DataError` for bad rows.
    """
    from alignkit.data.sources import OR_SKIP, DataSource, DataSpec
    from alignkit.io.text import is_file
    from alignkit.plugins import plugins
    from alignkit.recipe.yaml import plain_data
    from alignkit.runs.fingerprint import RunData
    from alignkit_plugins.entries import data_of

    if data.startswith("{"):
        spec = data_of(plain_data(data, f"'{data}'"), "alignkit label")
        return RunData(Path, 0).read(spec).groups, "labels"
    path = Path(data)
    if path.suffix in (".yaml", ".yml"):
        help = "ask in the recipe, with `step: people`, or name the file of rows that a stage wrote"
        refuse(f"{data}: a recipe is no data to label", help)
    if not is_file(path):
        refuse(f"no such file: {data}", "name a file with rows, or a store")
    plugins()  # which have readers and formats
    try:
        groups = RunData(Path, 0).read(DataSpec((DataSource(path=path.resolve()),))).groups
    except DataError as error:  # only a recipe can skip rows
        raise DataError(str(error).removesuffix(OR_SKIP)) from error
    return groups, path.name.split(".")[0] or "labels"


# What it says


def greet(store: Store, people: int) -> None:
    """Say how many items wait, and if more people are needed."""
    still_open = "retired = 0 AND gold IS NULL AND labels < wanted"
    items = store.rows(f"SELECT count(*), coalesce(max(wanted), 0) FROM items WHERE {still_open}")[
        0
    ]
    typer.echo(f"items to label: {items[0]}; labels go to {store.path}", err=True)
    if (missing := items[1] - people) > 0:
        text = f"each item needs labels by {items[1]} people, but only {people} can label here"
        typer.echo(f"warning: {text}\n  help: name {missing} more with --annotator", err=True)


def said_last(store: Store) -> str:
    """The last line: recipes learn from labels, but a run that waits for them only needs to
    continue.
    """
    from alignkit_plugins.people.votes import disputes

    path = os.path.relpath(store.path)
    count = store.rows("SELECT coalesce(sum(labels), 0) FROM items WHERE retired = 0")[0][0]
    said = (
        f"labels in {path}: {count}; a run that waits for them continues with the same command, "
        "and another "
    )
    said += f"recipe reads them with `data: {path}`"
    if waiting := len(disputes(store)):
        command = f"alignkit label {shlex.quote(path)} --annotator NAME"
        said += (
            "\n"
            f"disputed or flagged: {waiting}; somebody who did not label them can adjudicate: "
            f"{command}"
        )
    return said


# alignkit labels


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
    from alignkit_plugins.people.agreement import blocks, overview
    from alignkit_plugins.people.store import Store

    with Store.open(store) as opened:
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
    from alignkit_plugins.people import sharing
    from alignkit_plugins.people.store import Store

    lines = []
    with ExitStack() as stack:
        stores = []
        for source in sources:
            path = source / sharing.SHARED if source.is_dir() else source
            if into.exists() and path.exists() and path.samefile(into):
                raise DataError(
                    f"{into}: cannot be merged into itself; name another file with --into"
                )
            stores.append(stack.enter_context(Store.open(path)))
        target = stack.enter_context(Store.open(into, new=True))
        for source, opened in zip(sources, stores, strict=True):
            done = sharing.merge(target, opened)
            kept = (
                f"; {done['gold']} gold labels differ, those of {into} stay" if done["gold"] else ""
            )
            lines.append(f"{source}: {done['items']} new items, {done['events']} new events{kept}")
    return files_written([into], lines, text="\n".join(lines))


@labels_app.command()
def export(
    store: StoreFile,
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the export.")],
    license: Annotated[
        str, typer.Option(metavar="NAME", help="License of items that state none themselves.")
    ] = "",
    push: Annotated[
        str,
        typer.Option(
            metavar="ORG/NAME", help="Data set on the hub to add it to; it is made private."
        ),
    ] = "",
) -> Result:
    """Write a folder of what may be shared: redacted, with pseudonyms.

    An item needs a license, and everybody whose words are in a row must have agreed to share them.
    The rest is left out and counted. `alignkit data convert` makes other layouts of it.

    \b
    Examples:
      alignkit labels export labels.feedback --out shared-labels
      alignkit labels export labels.feedback --out shared-labels --push my-org/labels
    """
    from alignkit_plugins.people import sharing
    from alignkit_plugins.people.store import Store

    with Store.open(store) as opened:
        if push:
            done, address = sharing.push(opened, push, out, license)
        else:
            done, address = sharing.export(opened, out, license), ""
    notes = [
        *done.lines(),
        (
            "Simple rules removed e-mail addresses, telephone numbers and keys, but no names: "
            "read a sample before you publish"
        ),
        *([f"pushed to {address}"] if address else []),
    ]
    files = [out / name for name in (sharing.SHARED, sharing.ROWS, sharing.CARD)]
    return files_written(files, notes)
