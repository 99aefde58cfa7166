"""The commands `alignkit label` and `alignkit labels`."""

from __future__ import annotations

import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignkit.contract.commands import Result, argument, option
from alignkit.errors import DataError, did_you_mean, refuse
from alignkit.io.text import printable
from alignkit_plugins.command_line.printing import DefaultGroup, files_written, reported
from alignkit_plugins.extras import check_extra

if TYPE_CHECKING:
    from alignkit.data.group import Group
    from alignkit_plugins.people.items import Item
    from alignkit_plugins.people.store import Store

GOLD = "gold"  # the batch of items with known labels
labels_app = typer.Typer(cls=DefaultGroup, rich_markup_mode=None)
# What `--columns` names in rows for a task; else two answers
NAMED = {"demonstration": ("prompt",), "thumb": ("prompt", "completion")}
Guidelines = Annotated[
    Path | None,
    option("FILE", "Guidelines for labelers, in Markdown. Each label records their version."),
]
Columns = Annotated[
    str,
    option(
        "NAME=COLUMN,...",
        "Your columns: prompt, completion, or A, B and so on for answers to compare.",
    ),
]
StoreFile = Annotated[Path, argument("STORE", "Store of labels, such as labels.feedback.")]


def label(
    data: Annotated[
        Path,
        argument("DATA", "Data to label: a file in any format, or a store (.feedback)."),
    ],
    task: Annotated[
        str | None,
        option(
            "TASK",
            (
                "Task: pair, safety, ranking, review, demonstration or thumb. Default: by the "
                "responses."
            ),
        ),
    ] = None,
    guidelines: Guidelines = None,
    gold: Annotated[
        Path | None,
        option("FILE", "Items with known labels, mixed in unseen, to check the labelers."),
    ] = None,
    qualify: Annotated[
        int,
        option("N", "Number of gold items that everybody answers first, 80% of them right.", min=0),
    ] = 0,
    annotator: Annotated[
        list[str] | None,
        option("NAME", "Name of a labeler. Repeatable: each gets an address."),
    ] = None,
    overlap: Annotated[int, option("N", "Number of people who label each item.", min=1)] = 1,
    columns: Columns = "",
    port: Annotated[
        int | None,
        option("N", "Port of the page. Default: 8765, or the next free one.", min=1, max=65535),
    ] = None,
    host: Annotated[
        str | None,
        option("URL", "https:// address of the proxy that other machines use."),
    ] = None,
) -> None:
    """Label data on a page in your browser. Ctrl-C stops; the same command continues.

    \b
    Examples:
      alignkit label pairs.jsonl
      alignkit label runs/NAME/STAGE/data.jsonl
      alignkit label prompts.jsonl --annotator ada --annotator bob --overlap 2
      alignkit label a.jsonl --annotator ada --host https://labels.example.org
      alignkit label answers.jsonl --task review
      alignkit label faq.csv --columns prompt=Question,A=one,B=two
      alignkit label pairs.jsonl --gold known.jsonl --guidelines rules.md
      alignkit label runs/people/labels.feedback
    """
    from alignkit_plugins.servers import server

    check_extra("the page", "label", *server.PACKAGES)
    from alignkit_plugins.people.label_api import LabelApi
    from alignkit_plugins.people.labels import check_annotator
    from alignkit_plugins.people.site import Session, make_app

    names = list(dict.fromkeys(annotator or [os.environ.get("USER", "annotator")]))
    for name in names:
        check_annotator(name)
    rules = None if guidelines is None else text_of(guidelines)
    with ExitStack() as stack:  # nothing is stored until everything is there
        address = server.address_of(host)
        listener = stack.enter_context(server.listening(port, address))
        store = stack.enter_context(prepared(data, task, gold, overlap, qualify, columns))
        if rules is not None:
            store.add_guidelines(rules)
        greet(store, names)
        address.warn(listener)
        sessions = list(map(Session, names))
        for session in sessions:
            link = f"{address.url(listener)}/?token={session.token}"
            print(printable(f"{session.annotator}: {link}" if names[1:] else link), flush=True)
        typer.echo("Whoever has an address labels under that name. Ctrl-C stops.", err=True)
        app = make_app(LabelApi(store, qualify), sessions, address)
        with suppress(KeyboardInterrupt):
            server.server_of(app).run(sockets=[listener])
        say_goodbye(store)


def text_of(guidelines: Path) -> str:
    """The text of a file of guidelines. Raises `DataError` if there is none."""
    try:
        return guidelines.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"guidelines: {guidelines}: {error}") from error


def prepared(
    data: Path,
    task: str | None,
    gold: Path | None,
    overlap: int = 1,
    qualify: int = 0,
    columns: str = "",
) -> Store:
    """The store with the items in it.

    Raises RecipeError for wrong arguments, DataError for rows that cannot be labeled.
    """
    from alignkit.io.text import is_file
    from alignkit_plugins.command_line.words import check_columns, first_row, named_columns
    from alignkit_plugins.people.labels import TASKS
    from alignkit_plugins.people.store import SUFFIX, Store

    if task is not None and task not in TASKS:
        refuse(f"--task: unknown task '{task}'", did_you_mean(task, TASKS, "tasks"))
    is_store = data.suffix == SUFFIX
    files = [file for file in (gold, None if is_store else data) if file]
    for file in files:
        if not is_file(file):
            refuse(f"no such file: {file}", "name a file with rows, or a store")
    asked = named_columns(columns)
    check_columns(asked, map(first_row, files if asked else ()))
    right = read_items(gold, task, asked, gold=True) if gold else []
    path, items, known = data, list["Item"](), list["Item"]()
    if not is_store:
        path, items = store_of(data), read_items(data, task, asked)
        if not items:
            raise DataError(f"{data}: there is no row to label")
    if is_store or path.exists():
        with Store.open(path) as store:
            known = [stored.item for stored in store.items() if not stored.retired]
        check_task(path, known, [*items, *right], task)
    have = sum(item.gold is not None and not (right and item.batch == GOLD) for item in known)
    if qualify > have + len(right):
        text = f"--qualify {qualify}: the store has only {have + len(right)} gold items"
        refuse(text, "add rows whose labels are right: --gold FILE")
    with ExitStack() as stack:
        store = stack.enter_context(Store.open(path, new=not is_store))
        if not is_store:
            shown = [replace(item, results=True) for item in items]
            store.ask(shown, Path(os.path.relpath(data, path.parent)).as_posix(), overlap)
        elif overlap > 1:
            with store.transaction() as connection:
                connection.execute("UPDATE items SET wanted = ? WHERE retired = 0", (overlap,))
        if right:
            store.ask(right, GOLD)
        stack.pop_all()
    return store


def read_items(
    file: Path, task: str | None, columns: Mapping[str, str], *, gold: bool = False
) -> list[Item]:
    """The items of a file, and on the screen what was decided about all of its rows."""
    from alignkit_plugins.people.items import items_of

    notes = list[str]()
    items = items_of(groups_to_label(file, task, columns), task, gold=gold, notes=notes)
    for note in notes:
        typer.echo(f"{file}: {note}", err=True)
    return items


def check_task(path: Path, known: Sequence[Item], new: Sequence[Item], task: str | None) -> None:
    """Refuse items for which the store asks with another task: it would ask about them twice, and
    keep the first ones for good. task: of the command line.
    """
    before = {item.asks: item.task for item in known}
    tasks, asked = set(before.values()), {item.task for item in new}.union([task] if task else ())
    wrong = [item.task for item in new if before.get(item.asks, item.task) != item.task]
    if wrong or (tasks and asked and tasks.isdisjoint(asked)):
        old, other = (" and ".join(sorted(each)) for each in (tasks, set(wrong) or asked))
        text = f"{path} asks for the task {old}, and would ask again for the task {other}"
        refuse(text, f"--task {min(tasks)} continues; a copy of the file gets a store of its own")


def store_of(data: Path) -> Path:
    """Where the labels of a file go: next to it, or next to its stage, as a later run replaces the
    stage's folder.

    They go to the current folder if it has a store that an earlier version made of the file, or if
    nothing can be written next to the file.
    """
    from alignkit_plugins.people.store import SUFFIX

    place, here = Path(os.path.abspath(data)), Path(data.name.split(".")[0] + SUFFIX)
    path = place.with_name(here.name)
    if (place.parent / "stage.json").exists():
        path = place.parent.with_name(place.parent.name + SUFFIX)
    # A store belongs to the file next to it.
    earlier = here.exists() and not Path(data.name).exists()
    if not path.exists() and (earlier or not os.access(path.parent, os.W_OK)):
        return here
    return Path(os.path.relpath(path))


def groups_to_label(
    path: Path, task: str | None = None, columns: Mapping[str, str] | None = None
) -> list[Group]:
    """The rows of a file. columns: by the names that a format expects, where the file has them; A is
    the first answer. Raises `DataError` for bad rows.
    """
    from alignkit.host.plugins import plugins
    from alignkit.recipe.sources import OR_SKIP, DataSource, DataSpec, UnknownFormat
    from alignkit.runs.fingerprint import RunData
    from alignkit_plugins.command_line.words import first_row, first_rows
    from alignkit_plugins.formats.column_mappings import columns_help

    plugins()  # plugins have readers and formats
    own = first_row(path) if columns else {}
    # A letter alone would be an option of a question, if no label stood next to it
    named = {
        f"response_{name.lower()}" if len(name) == 1 else name: column
        for name, column in (columns or {}).items()
        if column in own
    }
    try:
        loaded = RunData(Path).read(DataSpec((DataSource(path=path.resolve(), columns=named),)))
    except UnknownFormat as error:
        command = f"alignkit label {shlex.quote(str(path))} "
        names = NAMED.get(task or "", ("prompt", "A", "B"))
        if task is not None:
            command += f"--task {task} "
        text = f"{str(error).splitlines()[0]}\nhelp: say which columns are meant, as in {command}"
        raise DataError(text + columns_help(names, first_rows(path))) from error
    except DataError as error:  # only a recipe can skip rows
        raise DataError(str(error).removesuffix(OR_SKIP)) from error
    for note in loaded.sources[0].notes:
        typer.echo(f"{path}: {note}", err=True)
    return loaded.groups


# Flagged items count nowhere, so nobody waits for their labels.
WAITING = """
SELECT iif(json_extract(content, '$.disputed'), json_extract(content, '$.settled_by'), '') AS settler,
    count(*), max(wanted) FROM items
WHERE retired = 0 AND gold IS NULL AND labels < wanted
    AND NOT EXISTS (SELECT 1 FROM effective AS e WHERE e.item = items.id AND e.kind = 'flag')
GROUP BY settler
"""


def greet(store: Store, names: Sequence[str]) -> None:
    """Say how many items wait, and if others are needed than these people."""
    others = [
        name
        for (name,) in store.rows("SELECT DISTINCT annotator FROM effective WHERE kind = 'label'")
    ]
    for settler, count, wanted in store.rows(WAITING) or store.rows("SELECT '', 0, 0"):
        what, needs, lacks = "label", f"labels by {wanted} people", wanted > len({*names, *others})
        if settler:
            what, needs, lacks = "settle", f"the label of {settler}", settler not in names
        typer.echo(f"items to {what}: {count}; labels go to {store.path}", err=True)
        if lacks:
            text = f"each item needs {needs}, but only {', '.join(names)} can label here"
            typer.echo(f"warning: {text}\n  help: name more with --annotator", err=True)


def say_goodbye(store: Store) -> None:
    """Say how many labels there are, and who reads them."""
    count = store.rows("SELECT coalesce(sum(labels), 0) FROM items WHERE retired = 0")[0][0]
    path = shlex.quote(str(store.path))
    text = "a run that waits for them continues with the same command, and `alignkit init NEW"
    typer.echo(f"labels in {path}: {count}; {text} {path}` writes one for them", err=True)


# alignkit labels


@labels_app.callback(invoke_without_command=True)
def report(context: typer.Context, store: StoreFile) -> Result | None:
    """Report on a store: its labels, people, and how far they agree.

    Agreement with each other and with gold labels is in percent and as Krippendorff's alpha, with
    95% intervals.

    \b
    Example:
      alignkit labels labels.feedback
    """
    if context.invoked_subcommand is not None:
        return None
    from alignkit.contract.report import Report, Table
    from alignkit_plugins.people.agreement import (
        agreement,
        people_table,
        said_of_sources,
        sentence,
    )
    from alignkit_plugins.people.store import Store
    from alignkit_plugins.people.votes import consents, labeled

    with Store.open(store) as opened:
        entries, consented = labeled(opened), consents(opened)
    tasks: dict[str, Counter[str]] = defaultdict(Counter)
    unused = Counter[str]()
    for entry in entries:
        why = entry.left_out or "votes tied" * entry.is_tied
        counts = {
            "items": 1,
            "labels": len(entry.votes),
            "learned from": int(not why),
            "gold": int(entry.item.gold is not None),
        }
        tasks[entry.item.task].update(counts)
        unused[why] += 1
    del unused[""]
    agreed = agreement(entries)
    facts = {"store": str(store), "tasks": tasks, "not_learned_from": unused, "agreement": agreed}
    rows = [[task, *map(str, counts.values())] for task, counts in tasks.items()]
    note = "\n".join(f"not learned from: {why}: {count}" for why, count in unused.items())
    items = Table("Items", ["task", "items", "labels", "learned from", "gold"], rows, note=note)
    people = replace(people_table(agreed, "People", consented), note=sentence(agreed))
    tables = [table for table in (items, people, said_of_sources(entries)) if table.rows]
    return reported(Report([str(store), *tables]), "labels", facts)


@labels_app.command()
def merge(
    sources: Annotated[
        list[Path],
        argument("STORE...", "Stores, or folders of exports, to add."),
    ],
    into: Annotated[
        Path,
        option("STORE", "Store to add them to, which is made if it does not exist."),
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
                raise DataError(f"{into}: cannot be merged into itself")
            stores.append(stack.enter_context(Store.open(path)))
        target = stack.enter_context(Store.open(into, new=True))
        for source, opened in zip(sources, stores, strict=True):
            done = sharing.merge(target, opened)
            lines.append(f"{source}: {done['items']} new items, {done['events']} new events")
    return files_written([into], lines, text="\n".join(lines))


@labels_app.command()
def export(
    store: StoreFile,
    out: Annotated[Path, option("DIR", "New folder for the export.")],
    license: Annotated[str, option("NAME", "License of items that state none themselves.")] = "",
    push: Annotated[
        str,
        option("ORG/NAME", "Data set on the hub to add it to; it is made private."),
    ] = "",
) -> Result:
    """Write a folder of what may be shared: redacted, with pseudonyms.

    An item needs a license, and everybody whose words are in a row must have agreed to share them.
    The rest is left out and counted. The rows are in the layouts of TRL and other trainers.

    \b
    Examples:
      alignkit labels export labels.feedback --out shared-labels
      alignkit labels export labels.feedback --out shared-labels --push my-org/labels
    """
    from alignkit_plugins.people import sharing
    from alignkit_plugins.people.store import Store

    with Store.open(store) as opened:
        if push:
            notes = sharing.push(opened, push, out, license)
        else:
            notes = sharing.export(opened, out, license)
    notes.append(
        "Simple rules removed e-mail addresses, telephone numbers and keys, but no names: read a "
        "sample before you publish"
    )
    return files_written(sorted(out.iterdir()), notes)
