"""What may be exported: rows with a license and with the consent of everybody whose words they are,
redacted.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from alignkit.errors import BadRow
from alignkit_plugins.people.effective_labels import consents
from alignkit_plugins.people.items import Item, listed, tupled
from alignkit_plugins.people.merging import Content, content_of
from alignkit_plugins.people.records import Event, Stored
from alignkit_plugins.people.redaction import redact
from alignkit_plugins.people.store import Store

UNLICENSED = "items without a license"
_PSEUDONYM = re.compile(r"person-[0-9a-f]{12}")


@dataclass
class LeftOut:
    """What is not exported: how many items and events for each reason.

    redacted: texts in which something was replaced.
    """

    reasons: Counter[str] = field(default_factory=Counter)
    redacted: int = 0

    def lines(self) -> list[str]:
        """What was left out, one reason per line."""
        return [f"left out: {reason}: {count}" for reason, count in self.reasons.items() if count]


def shareable(store: Store, license: str = "") -> tuple[Content, LeftOut]:
    """The part of a store that may be shared, with pseudonyms, and what was left out.

    Annotators need to have agreed, and not to have withdrawn, when the export is made. A pseudonym
    is the same in every export of a store, and does not reveal the name. license: of items that
    state none.
    """
    content, out = content_of(store), LeftOut()
    agreed = {name for name, granted in consents(store).items() if granted}
    events = [event for event in content.events if event.annotator in agreed]
    labeled = {event.item for event in events if event.kind in ("label", "adjudicate")}
    names: dict[str, str] = {}  # an item's id -> the id of its redacted form
    items: dict[str, Stored] = {}
    for stored in content.items:
        item = replace(stored.item, license=stored.item.license or license)
        redacted = _item(replace(stored, item=item), labeled, agreed, store.salt, out)
        if redacted is not None:
            names[stored.item.id] = redacted.item.id
            items.setdefault(redacted.item.id, redacted)
    out.reasons["events of people who have not agreed to share them"] = len(content.events) - len(
        events
    )
    kept = [
        _event(event, names, store.salt, out)
        for event in events
        if event.item is None or event.item in names
    ]
    present = {event.annotator for event in kept if event.item} | {
        stored.item.author for stored in items.values()
    }
    # Consent of the others shares nothing
    kept = [event for event in kept if event.annotator in present]
    used = {event.guidelines for event in kept}
    guidelines = sorted((name, redact(text)) for name, text in content.guidelines if name in used)
    return Content(list(items.values()), kept, guidelines), out


def pseudonym(name: str, salt: str) -> str:
    """A name that stands for an annotator's. One that is a pseudonym already stays."""
    if _PSEUDONYM.fullmatch(name):
        return name
    return f"person-{hashlib.sha256(f'{salt}/{name}'.encode()).hexdigest()[:12]}"


def without_copies(content: Content, target: Store) -> Content:
    """The content as it is merged into a store that may have it under other names: a label counts
    once.

    Exports have pseudonyms and redacted texts. What comes back from one gets the store's names, and
    what meets its own export gets the pseudonyms. What the store knows of its people's consent
    stays.
    """
    mine = content_of(target)
    ours, theirs = ({event.annotator for event in one.events} for one in (mine, content))
    names = {pseudonym(name, target.salt): name for name in ours}
    names |= {
        name: other
        for name in theirs - ours
        if content.salt and (other := pseudonym(name, content.salt)) in ours
    }
    stored = {one.item.id: one for one in mine.items}
    ids = {_shown(one.item): one.item.id for one in mine.items}
    # What both have under the same id is no copy: `merge` unites it. Two items may look the same in
    # an export.
    copies = {
        one.item.id: ids[shown]
        for one in content.items
        if one.item.id not in stored and (shown := _shown(one.item)) in ids
    }
    known = {event.uuid: event for event in mine.events}
    events = []
    for event in content.events:
        who, item = (
            names.get(event.annotator, event.annotator),
            copies.get(event.item or "", event.item),
        )
        renamed = replace(event, annotator=who, item=item)
        if event.uuid in known and _says(renamed) == _says(known[event.uuid]):
            events.append(known[event.uuid])
        elif event.kind != "consent" or who == event.annotator:
            events.append(renamed)
    items = [stored[copies[one.item.id]] if one.item.id in copies else one for one in content.items]
    return replace(content, items=items, events=events)


def _shown(item: Item) -> str:
    """The id of an item in exports."""
    return _redacted(item, "", LeftOut()).id


def _says(event: Event) -> Event:
    """The event as it is in exports, but with its name."""
    return replace(event, payload=listed(event.payload, redact))


def _item(
    stored: Stored, labeled: set[str | None], agreed: set[str], salt: str, out: LeftOut
) -> Stored | None:
    """The item as it is exported; None if it may not be, which is counted."""
    item = stored.item
    if stored.retired:
        out.reasons["items whose row has changed since"] += 1
    elif not item.license:
        out.reasons[UNLICENSED] += 1
    elif item.author and item.author not in agreed:
        out.reasons["items whose author has not agreed to share them"] += 1
    elif item.id not in labeled:
        out.reasons["items without a label that may be shared"] += 1
    else:
        try:
            return replace(stored, item=_redacted(item, salt, out).checked())
        except BadRow:
            out.reasons["items that mean nothing once they are redacted"] += 1
    return None


def _redacted(item: Item, salt: str, out: LeftOut) -> Item:
    """The item without personal data, and without what only this store needs."""
    texts: dict[str, Any] = {
        name: getattr(item, name) for name in ("prompt", "responses", "tools", "meta", "gold")
    }
    clean = {name: listed(value, redact) for name, value in texts.items()}
    out.redacted += sum(clean[name] != listed(value) for name, value in texts.items())
    return replace(
        item,
        **tupled(clean),
        author=pseudonym(item.author, salt) if item.author else "",
        batch=item.batch.rpartition("/")[2],  # folders tell who somebody is
        priority=0.0,
    )


def _event(event: Event, names: Mapping[str, str], salt: str, out: LeftOut) -> Event:
    payload = listed(event.payload, redact) if event.kind != "undo" else dict(event.payload)
    out.redacted += payload != event.payload
    item = None if event.item is None else names[event.item]
    return replace(event, item=item, annotator=pseudonym(event.annotator, salt), payload=payload)
