"""What people wrote, read and said about answers, kept in a store of feedback if they agreed."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit.data.group import Message
from alignkit.errors import refuse
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.labels import TERMS, BadLabel
from alignkit_plugins.people.store import SUFFIX, Event, Store
from alignkit_plugins.people.texts import storable
from alignkit_plugins.text.personal import mapped

BATCH = "chat"


@dataclass
class Collection:
    """A store that is filled by talking. It is made when somebody agrees.

    license: of the rows; without one they are never exported. names: what the store calls a policy,
    by its word.
    """

    path: Path
    license: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    _store: Store | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Raises RecipeError for a name that recipes do not recognize, and DataError for a file
        that is no store.
        """
        if self.path.suffix != SUFFIX:
            help = f"recipes recognize stores by their name: {self.path.with_suffix(SUFFIX)}"
            refuse(f"--collect: {self.path}: the name must end in {SUFFIX}", help)
        if self.path.exists():
            self.store()

    def store(self) -> Store:
        """The store, made if it does not exist."""
        with self._lock:
            if self._store is None:
                self._store = Store.open(self.path, new=True)
            return self._store

    def close(self) -> None:
        """Close the store, if it is open."""
        if self._store is not None:
            self._store.close()

    def agreed(self, annotator: str) -> bool:
        """Whether the annotator agreed to these terms, and did not take that back."""
        last = None if self._store is None else self._store.last(annotator, "consent")
        return last is not None and last.payload["granted"] and last.payload.get("terms") == TERMS

    def agree(self, annotator: str, granted: bool) -> None:
        """Store what the annotator says to the terms. "No" is stored only if it takes a "yes"
        back.
        """
        if granted or self.agreed(annotator):
            payload = {"granted": granted, "terms": TERMS}
            self.store().submit(Event(str(uuid.uuid4()), annotator, "consent", payload))

    def keep(
        self,
        annotator: str,
        policy: str,
        messages: Sequence[Message],
        answer: str,
        meta: Mapping[str, Any],
    ) -> str:
        """Keep what a policy answered, which can be rated; returns the id of its item. Without
        consent, or without text, which nobody could label, nothing is kept, and the id is empty.

        policy: the word that it was named by. Characters that no store takes are named in the texts.
        Raises BadRow for an answer that no recipe reads.
        """
        if not (answer.strip() and self.agreed(annotator)):
            return ""
        item = Item(
            "thumb",
            mapped(tuple(messages), lambda text, _: storable(text)),
            (storable(answer),),
            origins=(self.names.get(policy, policy),),
            meta=meta,
            license=self.license,
            author=annotator,
            batch=BATCH,
        )
        self.store().add([item])
        return item.id

    def rate(self, annotator: str, item: str, good: bool) -> None:
        """Store a thumb for an answer that was kept; a later one replaces it. Raises BadLabel
        without consent.
        """
        if not self.agreed(annotator):
            raise BadLabel("nothing is kept without consent")
        self.store().submit(Event(str(uuid.uuid4()), annotator, "label", {"good": good}, item))
