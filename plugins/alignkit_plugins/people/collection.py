"""What people wrote, read and said about answers, kept in a store of feedback if they agreed."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.data.group import Message
from alignkit.errors import BadRow, Problem, RecipeError
from alignkit_plugins.people.database import SUFFIX
from alignkit_plugins.people.items import TASKS, Item
from alignkit_plugins.people.labels import SIDES, BadLabel
from alignkit_plugins.people.records import Event
from alignkit_plugins.people.store import Store

if TYPE_CHECKING:
    from alignkit_apps.policies.policy import Exchange

BATCH = "chat"
REWARD = "reward"  # the column with the scores of an item's answers
TERMS = (
    "What I write, the answers and my labels are kept in a file on this machine, and models may be trained on them. "
    "They may be shared with others, under a pseudonym and the license of the data; without a license they are not."
)


@dataclass(frozen=True)
class Kept:
    """An answer in the store: the id of its item, and its index there."""

    item: str
    answer: int


@dataclass
class Collection:
    """A store that is filled by talking. It is made when somebody agrees.

    license: of the rows; without one they are never exported. names: what the store calls a policy, by its word.
    """

    path: Path
    license: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    _store: Store | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Raises RecipeError for a name that recipes do not recognize, and DataError for a file that is no store."""
        if self.path.suffix != SUFFIX:
            help = f"recipes recognize stores by their name: {self.path.with_suffix(SUFFIX)}"
            raise RecipeError([Problem(f"--collect: {self.path}: the name must end in {SUFFIX}", help=help)])
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

    # Consent

    def agreed(self, annotator: str) -> bool:
        """Whether the annotator agreed to these terms, and did not take that back."""
        if self._store is None:
            return False
        query = (
            "SELECT payload FROM effective WHERE kind = 'consent' AND annotator = ? ORDER BY created DESC, uuid DESC"
        )
        said = [json.loads(row["payload"]) for row in self._store.rows(f"{query} LIMIT 1", annotator)]
        return any(answer["granted"] and answer.get("terms") == TERMS for answer in said)

    def agree(self, annotator: str, granted: bool, name: str | None = None) -> None:
        """Store what the annotator says to the terms. "No" is stored only if it takes a "yes" back."""
        if granted or (self._store is not None and self.agreed(annotator)):
            payload = {"granted": granted, "terms": TERMS}
            self.store().submit(Event(name or str(uuid.uuid4()), annotator, "consent", payload))

    # Answers

    def keep(self, annotator: str, exchanges: Sequence[Exchange]) -> list[Kept | str]:
        """Keep the answers to one question; where each one that was shown is, or why it is not kept.

        Two answers to the same conversation are a pair, the best of several with the others a ranking, and any other
        answer can be rated. Nothing is kept without consent, nor an answer without text that is alone.
        """
        if not self.agreed(annotator):
            return ["nothing is kept without consent"] * len(exchanges)
        answers = [self._answers(exchange) for exchange in exchanges]
        shown = {exchange.answers[exchange.shown] for exchange in exchanges}
        alike = all(list(exchange.messages) == list(exchanges[0].messages) for exchange in exchanges)
        if len(exchanges) == len(shown) == 2 and alike and all(len(each) == 1 for each in answers):
            pair = self._add("pair", annotator, exchanges[0], [each[0] for each in answers])
            if isinstance(pair, Item):
                return [Kept(pair.id, 0), Kept(pair.id, 1)]
        found: list[Kept | str] = []
        for exchange, each in zip(exchanges, answers, strict=True):
            one = self._add("ranking" if len(each) > 1 else "thumb", annotator, exchange, each)
            found.append(Kept(one.id, 0) if isinstance(one, Item) else one)
        return found

    def _answers(self, exchange: Exchange) -> list[_Answer]:
        """Different answers of an exchange, the one that was shown first, and then by their rewards."""
        origin = self.names.get(exchange.policy, exchange.policy)
        scores = exchange.rewards or [None] * len(exchange.answers)
        order = sorted(range(len(scores)), key=lambda k: (k != exchange.shown, scores[k] is None, -(scores[k] or 0)))
        found: dict[str, _Answer] = {}
        for place in order:
            text = exchange.answers[place]
            if place == exchange.shown or text.strip():
                found.setdefault(text, _Answer(text, origin, scores[place]))
        return list(found.values())[: TASKS["ranking"][-1]]

    def _add(self, task: str, author: str, exchange: Exchange, answers: Sequence[_Answer]) -> Item | str:
        """Add an item; why not, if nobody could label it."""
        facts = {"seed": exchange.seed, "temperature": exchange.sampling.temperature}
        try:
            return self._item(task, author, exchange.messages, answers, facts)
        except BadRow as error:
            return str(error)

    def _item(
        self, task: str, author: str, prompt: Sequence[Message], answers: Sequence[_Answer], facts: Mapping[str, Any]
    ) -> Item:
        """Add an item with answers. Raises BadRow if nobody could label it."""
        if len(answers) == 1 and task != "demonstration" and not answers[0].text.strip():
            raise BadRow("the answer is empty")
        scores = [answer.reward for answer in answers]
        meta = dict(facts) | ({REWARD: scores} if None not in scores else {})
        texts, origins = tuple(answer.text for answer in answers), tuple(answer.origin for answer in answers)
        more: dict[str, Any] = {"license": self.license, "author": author, "batch": BATCH}
        item = Item(task, tuple(prompt), texts, origins=origins, meta=meta, **more)
        self.store().add([item])
        return item

    # What is said about them

    def rate(self, annotator: str, kept: Kept, good: bool, name: str | None = None) -> str:
        """Store a thumb, and return the name of its event."""
        return self._submit("thumb", annotator, [kept], {"good": good}, name)

    def choose(
        self, annotator: str, pair: Sequence[Kept], better: int, margin: str = "better", name: str | None = None
    ) -> str:
        """Store which of two answers is better, and how much. Raises BadLabel if they answer different prompts."""
        return self._submit("pair", annotator, pair, {"side": SIDES[better], "margin": margin}, name)

    def edit(self, annotator: str, kept: Kept, text: str, name: str | None = None) -> str:
        """Store what an answer should have been."""
        return self._submit("demonstration", annotator, [kept], {"text": text}, name)

    def undo(self, annotator: str, event: str, name: str | None = None) -> None:
        """Take back what the annotator said."""
        found = self._store.rows("SELECT item FROM events WHERE uuid = ?", event) if self._store else []
        if not found:
            raise BadLabel("there is nothing to undo")
        self.store().submit(Event(name or str(uuid.uuid4()), annotator, "undo", {"of": event}, found[0]["item"]))

    def _submit(
        self, task: str, annotator: str, kept: Sequence[Kept], payload: Mapping[str, Any], name: str | None
    ) -> str:
        """Store a label of the item of a task about these answers: the one that they are in, or a new one."""
        if not self.agreed(annotator):
            raise BadLabel("nothing is kept without consent")
        items = [self.store().item(one.item).item for one in kept]
        if any(item.prompt != items[0].prompt for item in items):
            raise BadLabel("these answers are to different conversations, so nobody can compare them")
        answers = [_answer_of(item, one.answer) for item, one in zip(items, kept, strict=True)]
        if payload.get("text") == answers[0].text:
            raise BadLabel("the answer is as it was")
        try:
            facts = {name: value for name, value in items[0].meta.items() if name != REWARD}
            item = self._item(task, items[0].author, items[0].prompt, answers, facts)
        except BadRow as error:
            raise BadLabel(str(error)) from error
        revision = self.store().item(item.id).revision
        event = Event(name or str(uuid.uuid4()), annotator, "label", payload, item.id, revision)
        return self.store().submit(event).event.uuid


@dataclass(frozen=True)
class _Answer:
    """An answer, who wrote it, and its first reward."""

    text: str
    origin: str | None
    reward: float | None


def _answer_of(item: Item, place: int) -> _Answer:
    if not 0 <= place < len(item.responses):
        raise BadLabel(f"item {item.id} has no answer {place}")
    scores = item.meta.get(REWARD) or [None] * len(item.responses)
    return _Answer(str(item.responses[place]), item.origins[place], scores[place])
