"""From the command's arguments to a page that runs: the store is filled, then the server
listens.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from alignkit.data.group import Group
from alignkit.data.sources import OR_SKIP, DataSource, DataSpec
from alignkit.errors import DataError, check_extra, did_you_mean, refuse
from alignkit.io.results import RECIPE
from alignkit.io.text import exists, is_file, printable
from alignkit.runs.fingerprint import RunData
from alignkit_plugins.entries import data_of
from alignkit_plugins.people.address import address_of
from alignkit_plugins.people.asking import items_of
from alignkit_plugins.people.database import SUFFIX
from alignkit_plugins.people.effective_labels import disputes
from alignkit_plugins.people.guidelines import Guidelines
from alignkit_plugins.people.hosting import (
    PACKAGES,
    addresses_of,
    annotators_of,
    announce,
    listening,
    server_of,
)
from alignkit_plugins.people.items import TASKS
from alignkit_plugins.people.store import Store

OPEN = "retired = 0 AND gold IS NULL AND labels < wanted"


def serve(
    store: Store,
    guidelines: Path | None,
    qualify: int,
    annotators: Sequence[str] | None,
    port: int | None,
    host: str | None,
) -> None:
    """Print the addresses, and serve the page until Ctrl-C.

    Raises RunFailed if a package is missing, RecipeError for wrong arguments.
    """
    from alignkit_plugins.people.guard import Sessions
    from alignkit_plugins.people.label_api import LabelApi
    from alignkit_plugins.people.label_app import make_app

    names, address = annotators_of(annotators), address_of(host)
    api = LabelApi(store, Guidelines(store, guidelines), qualify, said_last)
    for warning in store.warnings:
        print(printable(f"warning: {warning}"), file=sys.stderr)
    with listening(port, address) as listener:
        sessions = Sessions(names, address=address)
        addresses = addresses_of(sessions, listener)
        _greet(store, len(addresses))
        address.warn(listener)
        announce(addresses, "Whoever has an address labels under that name.")
        with suppress(KeyboardInterrupt):
            server_of(make_app(api, sessions)).run(sockets=[listener])
    print(printable(said_last(store)), file=sys.stderr)


def prepared(
    data: str,
    path: Path | None,
    task: str | None = None,
    gold: Path | None = None,
    overlap: int = 1,
    qualify: int = 0,
) -> Store:
    """The store with the items in it.

    Raises RunFailed if a package is missing, RecipeError for wrong arguments, DataError for rows
    that cannot be labeled.
    """
    check_extra("the page", "label", *PACKAGES)
    if task is not None and task not in TASKS:
        refuse(
            f"--task: unknown task '{task}'",
            did_you_mean(task, TASKS) or f"tasks: {', '.join(TASKS)}",
        )
    is_store = data.endswith(SUFFIX)
    if is_store and path is not None:
        refuse("DATA is a store already", "leave out --store")
    groups, name = ([], "") if is_store else _groups(data)
    path = Path(data) if is_store else path or Path(f"{name}{SUFFIX}")
    if path.suffix != SUFFIX:
        help = f"recipes recognize stores by their name: {path.with_suffix(SUFFIX)}"
        refuse(f"--store: {path}: the name must end in {SUFFIX}", help)
    if task is None:
        _check_writing(groups, data)
    right = items_of(file_groups(gold), task, gold=True) if gold else []
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
        have = store.rows("SELECT count(*) AS n FROM items WHERE gold IS NOT NULL AND retired = 0")[
            0
        ]["n"]
        if qualify > have:
            text = f"--qualify {qualify}: the store has only {have} gold item{'s' * (have != 1)}"
            refuse(text, "add rows whose labels are right: --gold FILE")
    except BaseException:
        store.close()
        raise
    return store


def _groups(data: str) -> tuple[list[Group], str]:
    """The rows, and a name for their store."""
    if data.startswith("{"):
        return entry_groups(data), "labels"
    if data.endswith((".yaml", ".yml")):
        help = "ask in the recipe, with `step: people`, or name the file of rows that a stage wrote"
        refuse(f"{data}: a recipe is no data to label", help)
    path = Path(data)
    return file_groups(path), path.name.split(".")[0] or "labels"


def entry_groups(text: str) -> list[Group]:
    """The rows of a data entry as a recipe has it, such as `{path: FILE, columns: {prompt:
    question}}`.
    """
    from alignkit.recipe.yaml import plain_data

    return RunData(Path, 0).read(data_of(plain_data(text, f"'{text}'"), "alignkit label")).groups


def file_groups(path: Path) -> list[Group]:
    """The rows of a file, in any format. Raises `RecipeError` if it is not there, `DataError` for
    bad rows.
    """
    from alignkit.plugins import plugins

    if not is_file(path):
        refuse(f"no such file: {path}", "name a file with rows, or a store")
    plugins()  # which have readers and formats
    spec = DataSpec((DataSource(path=path.resolve()),))
    try:
        return RunData(Path, 0).read(spec).groups
    except DataError as error:  # only a recipe can skip rows
        raise DataError(str(error).removesuffix(OR_SKIP)) from error


def _check_writing(groups: Sequence[Group], data: str) -> None:
    """Refuse prompts next to a list of texts, which may be answers to compare: nobody would see
    them.
    """
    for group in groups:
        for name, value in group.meta.items():
            texts = (
                isinstance(value, list)
                and len(value) > 1
                and all(isinstance(text, str) for text in value)
            )
            if texts and not group.responses:
                text = (
                    f"{data}: people would write answers, and see nothing of the texts in column "
                    f"'{name}'"
                )
                compare = f"to compare them: alignkit label '{{unlabeled: {data}}}'"
                refuse(text, f"{compare}; to write: --task demonstration")


def _greet(store: Store, people: int) -> None:
    open_items = store.rows(
        f"SELECT count(*) AS n, coalesce(max(wanted), 0) AS wanted FROM items WHERE {OPEN}"
    )[0]
    left, wanted = open_items["n"], open_items["wanted"]
    print(
        printable(f"{left} item{'s' * (left != 1)} to label; labels go to {store.path}"),
        file=sys.stderr,
    )
    if (missing := wanted - people) > 0:
        names = f"{missing} more --annotator" if missing > 1 else "one more --annotator"
        text = f"each item needs labels by {wanted} people, but only {people} can label here"
        print(
            f"warning: {text}\n  help: add {names}, or merge the labels of others later",
            file=sys.stderr,
        )


def said_last(store: Store) -> str:
    """The last line: recipes learn from labels, but a run that waits for them only needs to
    continue.
    """
    here, there = Path.cwd(), store.path.absolute()
    path = there.relative_to(here) if there.is_relative_to(here) else store.path
    count = store.rows("SELECT coalesce(sum(labels), 0) AS n FROM items WHERE retired = 0")[0]["n"]
    if not count:
        return f"no labels yet; they will be in {path}"
    said = f"{count} labels are in {path}" if count > 1 else f"1 label is in {path}"
    if exists(there.parent / RECIPE):
        said += "; `alignkit run` with the same recipe continues"
    else:
        said += f"; train on {'them' if count > 1 else 'it'} with `data: {path}`"
    if waiting := len(disputes(store)):
        items = "1 item is" if waiting == 1 else f"{waiting} items are"
        command = f"alignkit label {shlex.quote(str(path))} --annotator NAME"
        said += (
            "\n"
            f"{items} disputed or flagged; somebody who did not label them can adjudicate: "
            f"{command}"
        )
    return said
