"""What the page asks for and sends: the next item, labels, undo and adjudication, as plain JSON
values.

The page never learns who wrote an answer, what a gold label is, or in which order the answers lie
in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from alignkit.data.group import sha256_of, turns_of
from alignkit_plugins.people import assignment
from alignkit_plugins.people.assignment import LEAST, Assignment, Qualification, qualification
from alignkit_plugins.people.items import Item, turns_of_answer
from alignkit_plugins.people.labels import (
    PER_RESPONSE,
    SIDES,
    TERMS,
    BadLabel,
    StrictModel,
    Word,
    displayed,
    read,
)
from alignkit_plugins.people.store import Event, Store, event_of
from alignkit_plugins.people.texts import shown_turn, visible
from alignkit_plugins.people.votes import Labeled, consents, disputes

State = dict[str, Any]
DEFAULT, REVIEW = (Path(__file__).with_name(name) for name in ("guidelines.md", "review.md"))


class _Submitted(StrictModel):
    uuid: str
    kind: Literal["label", "skip", "flag", "adjudicate"]
    item: str
    shown: list[str] = Field(max_length=9)
    payload: dict[str, Any]
    guidelines: str
    seconds: float | None = None


class _Undone(StrictModel):
    uuid: str
    of: str


class _Agreed(StrictModel):
    uuid: str
    granted: bool
    credit: Word = ""


def guidelines_now(store: Store) -> tuple[str, str]:
    """The hash and the text of the guidelines that labelers see now: the last ones of the store,
    else the package's.
    """
    packaged = [file.read_text(encoding="utf-8") for file in (DEFAULT, REVIEW)]
    # Those of the package were perhaps shown for items of another task.
    earlier = [version for version in store.guidelines() if version[1] not in packaged]
    if earlier:
        return earlier[-1]
    reviews = store.count("SELECT 1 FROM items WHERE task = 'review' AND retired = 0")
    text = packaged[bool(reviews)]
    return store.add_guidelines(text), text


def rendered(text: str) -> str:
    """Guidelines as HTML. HTML in them is shown as text, and images by their names."""
    from markdown_it import MarkdownIt

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    return str(markdown.render(text))


@dataclass
class LabelApi:
    """The store, as annotators see it. Raises `BadLabel` for messages that it does not take.

    qualify: gold items that everybody answers first. what_next: said to whoever has labeled
    everything.
    """

    store: Store
    qualify: int = 0
    what_next: Callable[[Store], str] = lambda store: ""

    def next(self, annotator: str, message: Any) -> State:
        """The item to label now. The message says nothing."""
        state = self._next(annotator)
        state["todo"]["adjudicate"] = bool(disputes(self.store, annotator))
        return state

    def submit(self, annotator: str, message: Any) -> State:
        """Store a label, a skip or a flag, and return the next item. The same message again changes
        nothing.
        """
        sent = read(_Submitted, message)
        exam = self._exam(annotator)
        if sent.kind == "adjudicate":
            raise BadLabel("'kind': nobody adjudicates here")
        if not exam.passed and self.store.item(sent.item).item.gold is None:
            raise BadLabel(
                _closed(exam) if exam.failed else "some other items come first; reload the page"
            )
        return self._next(annotator, self._store(annotator, sent))

    def undo(self, annotator: str, message: Any) -> State:
        """Undo the annotator's event and return its item, filled in as it was."""
        sent = read(_Undone, message)
        rows = self.store.rows(
            "SELECT content FROM events WHERE uuid = ? AND item IS NOT NULL", sent.of
        )
        if not rows:
            raise BadLabel("there is nothing to undo")
        event = event_of(rows[0])
        item = str(event.item)
        if event.kind in ("label", "skip") and self._exam(annotator).failed:
            raise BadLabel("the first items cannot be answered again")
        self.store.submit(Event(sent.uuid, annotator, "undo", {"of": event.uuid}, item))
        if event.kind == "adjudicate":
            return self._dispute(annotator, item)
        state = self._state(
            annotator, assignment.take(self.store, annotator, item), "Undone. Change it."
        )
        if event.kind == "label":
            names = _names(self.store.item(item).item)
            shown = [names[index] for index in event.order]
            state["draft"] = {
                "shown": shown,
                "value": dict(event.payload),
                "seconds": event.seconds or 0.0,
            }
        return state

    def consent(self, annotator: str, message: Any) -> State:
        """Store whether the annotator's labels may be shared, and how the data name them, as the
        page asks it.
        """
        sent = read(_Agreed, message)
        payload = {**sent.model_dump(exclude={"uuid"}), "terms": TERMS}
        self.store.submit(Event(sent.uuid, annotator, "consent", payload))
        return {"consent": sent.granted}

    # Adjudication

    def next_dispute(self, annotator: str, message: Any) -> State:
        """The first item that this person should adjudicate, with what everyone said. The message
        says nothing.
        """
        return self._dispute(annotator)

    def adjudicate(self, annotator: str, message: Any) -> State:
        """Store the label that settles an item, and return the next item."""
        sent = read(_Submitted, message)
        labels = "SELECT 1 FROM effective WHERE item = ? AND annotator = ? AND kind = 'label'"
        if sent.kind != "adjudicate" or self.store.count(labels, sent.item, annotator):
            raise BadLabel("you labeled this item, so somebody else settles it")
        return self._dispute(annotator, notice=self._store(annotator, sent))

    def _dispute(self, annotator: str, wanted: str | None = None, notice: str = "") -> State:
        left = disputes(self.store, annotator)
        entry = next(
            (entry for entry in left if entry.stored.item.id == wanted), left[0] if left else None
        )
        shown = (
            None
            if entry is None
            else assignment.assignment(self.store, annotator, entry.stored.item.id)
        )
        state = self._state(annotator, shown, notice)
        settled = self.store.count(
            "SELECT 1 FROM effective WHERE annotator = ? AND kind = 'adjudicate'", annotator
        )
        last = self.store.last(annotator, "adjudicate")
        state["last"] = last and last.uuid
        state["progress"] = {
            "mine": settled,
            "skipped": 0,
            "total": settled + len(left),
            "pace": None,
        }
        if entry is not None and shown is not None:
            state["votes"] = _votes(entry, shown.order)
        elif disputes(self.store):
            state["end"]["said"] = (
                "What is left to settle has a label of yours, so it waits for somebody else."
            )
        return state

    # Events

    def _store(self, annotator: str, sent: _Submitted) -> str:
        """Store what the page sent. Returns what to say about it."""
        stored = self.store.item(sent.item)
        if sent.guidelines not in dict(self.store.guidelines()):
            raise BadLabel("the guidelines of this label are not in the store; reload the page")
        facts = sent.model_dump(exclude={"shown"})
        self.store.submit(
            Event(annotator=annotator, order=_order(stored.item, sent.shown), **facts)
        )
        if stored.retired:
            return "The data changed while you labeled. Your label is kept for the earlier version."
        return ""

    def _exam(self, annotator: str) -> Qualification:
        return qualification(self.store, annotator, self.qualify)

    # What the page shows

    def _state(self, annotator: str, shown: Assignment | None, notice: str = "") -> State:
        last = self.store.last(annotator)
        progress = assignment.progress(self.store, annotator)
        consent = consents(self.store).get(annotator)
        people = self.store.count("SELECT DISTINCT annotator FROM effective WHERE kind = 'label'")
        todo = {"sharing": progress.mine > 0 or consent is not None, "quality": people > 1}
        if shown is None:
            todo["adjudicate"] = bool(disputes(self.store, annotator))
        return {
            "item": None if shown is None else shown_item(shown),
            "draft": None,
            "progress": asdict(progress),
            "todo": todo,
            "last": last and last.uuid,
            "guidelines": guidelines_now(self.store)[0],
            "consent": consent,
            "notice": notice,
            "end": None if shown else {"next": self.what_next(self.store)},
        }

    def _next(self, annotator: str, notice: str = "") -> State:
        """The next item, or why there is none."""
        state = self._state(
            annotator, assignment.next_item(self.store, annotator, self.qualify), notice
        )
        exam = self._exam(annotator)
        if state["end"] and not exam.passed:
            state["end"] = {"heading": "Thank you", "said": _closed(exam), "next": ""}
            state["last"] = None if exam.failed else state["last"]
        elif exam.asked and not exam.answered:
            first = (
                f"The first {exam.asked} items have known answers. They show whether the task is "
                "clear."
            )
            state["notice"] = notice or first
        return state


def _closed(exam: Qualification) -> str:
    """For whoever has not qualified."""
    return (
        f"Of the first {exam.asked} items, {exam.right} of your answers match the known ones, and "
        f"this project asks for {LEAST:.0%}. So there is nothing more to label here. If you think "
        "that a known answer is wrong, ask whoever sent you the link."
    )


def shown_item(assigned: Assignment) -> dict[str, Any]:
    """An item as the page gets it: texts that cannot hide anything, and answers in the order of
    this annotator.
    """
    item = assigned.stored.item
    names = _names(item)
    answers = [list(map(shown_turn, turns_of_answer(answer))) for answer in item.responses]
    view = {
        "id": item.id,
        "task": item.task,
        "prompt": [shown_turn(turn) for turn in item.prompt],
        "responses": [answers[index] for index in assigned.order],
        "shown": [names[index] for index in assigned.order],
        "criteria": list(item.criteria),
    }
    if item.task == "demonstration" and answers:
        view["text"] = turns_of_answer(item.responses[0])[-1]["content"]
    return view


def _names(item: Item) -> list[str]:
    """A name for each response that depends on its text only, so that it says nothing about the
    order in the store.
    """
    answers = [answer if isinstance(answer, str) else turns_of(answer) for answer in item.responses]
    return [sha256_of([answer])[:16] for answer in answers]


def _order(item: Item, shown: Sequence[str]) -> tuple[int, ...]:
    """The indices of the responses in the order in which a page showed them."""
    names = _names(item)
    if sorted(shown) != sorted(names):
        raise BadLabel("the page shows other answers than the store has; reload the page")
    order: list[int] = []
    for name in shown:
        order.append(next(i for i, other in enumerate(names) if other == name and i not in order))
    return tuple(order)


def _votes(entry: Labeled, order: Sequence[int]) -> list[dict[str, Any]]:
    """What everyone said, as it would look with the answers in this order."""
    labels = [(vote.annotator, vote.label) for vote in entry.votes]
    if entry.gold is not None:
        labels.append(("known answer", entry.gold))
    votes = [{"annotator": who, "said": in_words(displayed(label, order))} for who, label in labels]
    for kind, notes in (("flag", entry.flags), ("skip", entry.skips)):
        votes += [{"annotator": who, "said": f"{kind}: {visible(text)}"} for who, text in notes]
    return votes


def in_words(label: Mapping[str, Any]) -> str:
    """A label as it was given on the page, such as `side: A; margin: better` or `ranks: A 2, B
    1`.
    """
    parts = []
    for part, value in label.items():
        if part in PER_RESPONSE:
            value = ", ".join(f"{name} {each}" for name, each in zip(SIDES, value, strict=False))
        parts.append(f"{part}: {value}")
    return visible("; ".join(parts))
