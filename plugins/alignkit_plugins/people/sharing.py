"""What may leave a store, and what comes into it: exports with consent, license, redaction and
pseudonyms, merging, and the hub.

The folder of an export has a store that holds what may be shared, its rows in the layouts of
trainers, and a card.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from alignkit.contract.report import Report, Table
from alignkit.errors import BadRow, DataError, RunFailed, refuse
from alignkit.io.atomic import replace_folder
from alignkit_plugins.formats.layouts import LAYOUTS
from alignkit_plugins.people.agreement import agreement, people_table, sentence
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.store import SUFFIX, Store, Stored
from alignkit_plugins.people.votes import Labeled, consents, labeled, labeled_groups
from alignkit_plugins.text.personal import examples, mapped, redact

LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
DATASET = "dataset"  # one of the hub's kinds of repositories
SHARED, CARD = f"labels{SUFFIX}", "README.md"
WRITTEN = ("preference", "ranked", "kto", "sft")  # layouts of the rows
# Columns of an item that may name somebody
TEXTS = ("prompt", "responses", "tools", "meta", "gold")
_PSEUDONYM = re.compile(r"person-[0-9a-f]{12}")


def pseudonym(name: str, salt: str) -> str:
    """A name that stands for an annotator's. One that is a pseudonym already stays."""
    if not name or _PSEUDONYM.fullmatch(name):
        return name
    digest = hashlib.sha256(f"{salt}/{name}".encode()).hexdigest()
    return f"person-{digest[:12]}"


# Merging


def merge(target: Store, source: Store) -> Counter[str]:
    """Add what another store holds; twice is as good as once, and a label counts once, wherever it
    has been.

    Exports have pseudonyms and redacted texts. An event that both have says which person and which
    item of the source is whose and which of the target. An item that both have keeps the target's
    gold label, and gets a license, a gold label or columns if the target has none. What the target
    knows of its people's consent stays.

    Returns how many items and events are new. Raises `DataError`, and writes nothing, for an event
    with the same uuid that is another one, for an item with another license, and for what no store
    takes.
    """
    done: Counter[str] = Counter()
    with source.transaction("DEFERRED"):
        items, events, guidelines = source.items(), source.events(), source.guidelines()
    with target.transaction() as connection:
        ours = target.by_id()
        known = {event.uuid: event for event in target.events()}
        people, same = dict[str, str](), dict[str | None, str | None]()
        for event in events:
            if (mine := known.get(event.uuid)) is not None:
                people[event.annotator], same[event.item] = mine.annotator, mine.item
                if mine.created != event.created:
                    raise _misfit(target, source, f"event {event.uuid} says two things")
        for stored in items:
            item = stored.item.checked()
            old = ours.get(str(same.get(item.id, item.id)))
            if old is None:
                target.put(item, wanted=stored.wanted, retired=stored.retired)
                done["items"] += 1
                continue
            licenses = {old.item.license, item.license} - {""}
            if len(licenses) > 1:
                text = f"item {item.id} has the licenses {' and '.join(sorted(licenses))}"
                raise _misfit(target, source, text)
            if item.id == old.item.id:  # not if it is redacted
                retired = old.retired or stored.retired
                target.put(old.item.filled(item), wanted=old.wanted, retired=retired)
        values = [(name, text, target.time()) for name, text in guidelines.items()]
        connection.executemany("INSERT OR IGNORE INTO guidelines VALUES (?, ?, ?)", values)
        for event in events:
            who = people.get(event.annotator, event.annotator)
            if event.uuid not in known and (event.item or who == event.annotator):
                name = same.get(event.item, event.item)
                about = None if name is None else target.item(name).item
                target.append(replace(event, annotator=who, item=name).checked(about))
                done["events"] += 1
    return done


def _misfit(target: Store, source: Store, text: str) -> DataError:
    return DataError(f"{source.path} does not fit {target.path}: {text}. Nothing was merged")


# Exports


def export(store: Store, out: Path, license: str = "") -> list[str]:
    """Write what may be shared into a new folder, and return what its readers should know. The same
    store gives the same rows, and so does a store made of them.

    license: of items that state none. Raises `DataError` if nothing may be shared, or if there is
    such a folder.
    """
    if out.exists():
        raise DataError(f"{out}: there is such a folder; name a new one")
    with replace_folder(out) as new, Store.open(new / SHARED, new=True) as shared:
        notes = share(store, shared, license)
        entries = labeled(shared)
        layouts = []
        for layout in WRITTEN:
            if rows := "".join(_rows(entries, layout)):
                (new / f"{layout}.jsonl").write_text(rows, "utf-8")
                layouts.append(layout)
        if not layouts:
            needs = "An item needs a license (--license NAME), and its annotators' consent"
            raise DataError(f"{store.path}: nothing may be exported: {'; '.join(notes)}. {needs}")
        (new / CARD).write_text(data_set_card(shared, layouts), "utf-8")
    return notes


def _rows(entries: Sequence[Labeled], layout: str) -> Iterator[str]:
    """The lines of a file."""
    for entry in entries:
        for group in labeled_groups(entry):
            for row in LAYOUTS[layout].written(group):
                line = {**row, "license": entry.item.license}
                yield json.dumps(line, ensure_ascii=False) + "\n"


def share(store: Store, shared: Store, license: str) -> list[str]:
    """Fill a new store with what may be shared of another one, under pseudonyms; returns how many
    people's labels it holds, and what is left out and why.

    Annotators need to have agreed, and not to have withdrawn, when the export is made. A pseudonym
    is the same in every export of a store, and does not reveal the name.
    """
    agreed = {name for name, consent in consents(store).items() if consent.granted}
    everything, salt = store.events(), store.salt
    events = [event for event in everything if event.annotator in agreed]
    labels = {event.item for event in events if event.kind == "label"}
    others = len(everything) - len(events)
    out = Counter({"events of people who have not agreed to share them": others})
    changed, found = 0, list[tuple[str, str, str]]()
    names: dict[str | None, str] = {}  # an item's id -> the id of its redacted form
    present: set[str] = set()
    with shared.transaction() as connection:
        for stored in store.items():
            who = stored.item.settled_by
            item = replace(
                stored.item,
                license=stored.item.license or license,
                settled_by=who if who in agreed else "",
            )
            parts: list[tuple[str, str]] = []
            clean = _redacted(item, salt, parts)
            if why := _kept_back(stored, item, clean, agreed, labels):
                out[why] += 1
                continue
            changed += sum(getattr(clean, name) != getattr(item, name) for name in TEXTS)
            found += [(word, part, f"item {item.id}") for word, part in parts]
            shared.put(clean, wanted=stored.wanted)
            names[item.id] = clean.id
            present.add(item.author)
        present |= {event.annotator for event in events if event.item in names}
        used = set()
        for event in events:
            if event.item in names or (event.item is None and event.annotator in present):
                payload, parts = event.payload, []
                if event.kind != "undo":
                    payload = _clear(payload, parts)
                changed += payload != event.payload
                found += [(word, part, f"a {event.kind}") for word, part in parts]
                who, item_id = pseudonym(event.annotator, salt), names.get(event.item)
                shared.append(replace(event, annotator=who, payload=payload, item=item_id))
                used.add(event.guidelines)
        for name, text in store.guidelines().items():
            if name in used:
                values = (name, redact(text), "")
                connection.execute("INSERT INTO guidelines VALUES (?, ?, ?)", values)
    notes = [f"people: {len(present - {''})}; texts in which something was redacted: {changed}"]
    notes += examples(found)
    return notes + [f"left out: {why}: {count}" for why, count in out.items() if count]


def _kept_back(
    stored: Stored, item: Item, clean: Item, agreed: set[str], labels: set[str | None]
) -> str:
    """Why an item is not exported; empty if it is."""
    if stored.retired:
        return "items whose row has changed since"
    if not item.license:
        return "items without a license"
    if item.author and item.author not in agreed:
        return "items whose author has not agreed to share them"
    if item.id not in labels:
        return "items without a label that may be shared"
    try:
        clean.checked()
    except BadRow:
        return "items that mean nothing once they are redacted"
    return ""


def _redacted(item: Item, salt: str, found: list[tuple[str, str]]) -> Item:
    """The item without personal data, and without what only this store needs. found: as in `redact`."""
    texts = {name: _clear(getattr(item, name), found) for name in TEXTS}
    batch = item.batch.rpartition("/")[2]  # folders tell who somebody is
    return replace(
        item,
        **texts,
        author=pseudonym(item.author, salt),
        settled_by=pseudonym(item.settled_by, salt),
        batch=batch,
        priority=0.0,
        disputed=False,
    )


def _clear(value: Any, found: list[tuple[str, str]]) -> Any:
    return mapped(value, lambda text, _: redact(text, found))


def data_set_card(store: Store, layouts: Sequence[str]) -> str:
    """The README of an export: its licenses, how to read it, how far people agree, and who wants to
    be credited. layouts: of its rows.
    """
    entries = labeled(store)
    licenses = sorted({entry.item.license for entry in entries})
    facts = agreement(entries)
    votes = Counter(chain.from_iterable(entry.votes for entry in entries))
    people = consents(store)
    credited = [
        [each.credit, str(votes[who])] for who, each in sorted(people.items()) if each.credit
    ]
    tables = [
        people_table(facts, "annotators", people),
        Table("Contributors", ["who", "labels"], credited),
    ]
    shown = Report([sentence(facts), *(table for table in tables if table.rows)]).markdown()
    configs = [f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in layouts]
    return (
        "---\n"
        "license: other\n"
        f"license_name: {'-or-'.join(licenses)}\n"
        "configs:\n"
        f"{''.join(configs)}"
        "---\n"
        "# Human labels\n"
        "\n"
        f"{len(entries)} items, {votes.total()} labels of {len(votes)} people, who agreed that "
        f"they are shared. `alignkit labels merge` reads {SHARED}, and a recipe reads a file, or "
        f"the data set: `data: {{hub: ORG/NAME, name: {layouts[0]}}}`.\n"
        "\n"
        f"{shown}"
    )


def push(store: Store, repo: str, out: Path, license: str = "") -> list[str]:
    """Share a store in a data set of the hub, with what others share there; returns notes as
    `export` does.

    out: a new folder for all of it. Whoever took the consent back here is gone there, too. Raises
    `DataError` if nothing may be exported, RecipeError for a name that cannot be written to, and
    RunFailed if the hub refuses.
    """
    repo = check_target(repo)
    with TemporaryDirectory() as folder:
        pool_path, own_path = Path(folder) / "pool.feedback", Path(folder) / "own.feedback"
        with Store.open(pool_path, new=True) as pool, Store.open(own_path, new=True) as own:
            if (there := _downloaded(repo)) is not None:
                with Store.open(there) as earlier:
                    merge(pool, earlier)
            notes = share(store, own, license)
            merge(pool, own)
            with pool.transaction():
                for event in store.effective("consent"):
                    who = pseudonym(event.annotator, store.salt)
                    if not event.payload["granted"] and pool.last(who, "consent") is not None:
                        pool.append(replace(event, annotator=who))
            export(pool, out)
    return [*notes, f"pushed to {upload(out, repo)}"]


def _downloaded(repo: str) -> Path | None:
    """The store that a data set has, as it is now."""
    from huggingface_hub import HfApi

    api = HfApi()
    if not api.file_exists(repo, SHARED, repo_type=DATASET):
        return None
    return Path(api.hf_hub_download(repo, SHARED, repo_type=DATASET))


# The hub


def check_target(repo: str) -> str:
    """Return a data set of the hub as OWNER/NAME; a new one is made, private. Call it before the
    work.

    Args:
        repo: OWNER/NAME, or the NAME of one of the user's own.

    Raises:
        RecipeError: For what is no name of a repository, or without a token.
        RunFailed: If the hub refuses, or does not answer.
    """
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        refuse("--push needs the hub, but HF_HUB_OFFLINE is set", "unset it, or leave --push out")
    if get_token() is None:
        refuse("--push needs a token of the hub, and there is none", LOGIN)
    create = partial(HfApi().create_repo, repo, repo_type=DATASET, private=True, exist_ok=True)
    return str(_hub_call(create, LOGIN).repo_id)


def upload(folder: Path, repo: str) -> str:
    """Upload a folder to a data set from `check_target`; return its address, and who can read it.

    Raises RunFailed if the hub refuses; the folder stays.
    """
    from huggingface_hub import HfApi

    api, command = HfApi(), f"hf upload {repo} {folder} --repo-type {DATASET}"
    again = f"it is in {folder}; push it with `{command}`"
    send = partial(api.upload_folder, repo_id=repo, repo_type=DATASET, folder_path=folder)
    _hub_call(partial(send, commit_message="Exported with alignkit"), again)
    is_private = _hub_call(partial(api.repo_info, repo, repo_type=DATASET), again).private
    return f"{api.endpoint}/{repo}, which {'only you' if is_private else 'everybody'} can read"


def _hub_call(call: Callable[[], Any], help: str) -> Any:
    """The hub's answer."""
    from huggingface_hub.errors import HFValidationError

    try:
        return call()
    except HFValidationError as error:
        refuse(f"--push: this is no name of a repository: {error}", "write OWNER/NAME")
    except Exception as error:  # the hub's and the HTTP library's errors have many names
        raise RunFailed(f"the hub refused, or did not answer: {error}\nhelp: {help}") from error
