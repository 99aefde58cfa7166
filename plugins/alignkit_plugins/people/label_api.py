"""What the page asks for and sends: the next item, labels and undo, as plain JSON values.

Before the end, the page never learns who wrote an answer, what a gold label is, or in which order
the answers lie in the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from pydantic import Field

from alignkit.data.group import sha256_of
from alignkit_plugins.people import assignment
from alignkit_plugins.people.assignment import LEAST, Assignment, Qualification, qualification
from alignkit_plugins.people.items import Item, turns_of_answer
from alignkit_plugins.people.labels import TERMS, BadLabel, Consent, StrictModel, read
from alignkit_plugins.people.store import Event, Store, event_of
from alignkit_plugins.people.texts import shown_turn, visible
from alignkit_plugins.people.votes import labeled

State = dict[str, Any]
GUIDELINES = Path(__file__).with_name("guidelines.md")


class _Submitted(StrictModel):
    uuid: str
    kind: Literal["label", "skip", "flag"]
    item: str
    shown: list[str] = Field(max_length=9)
    payload: dict[str, Any]
    guidelines: str
    seconds: float | None = None


class _Undone(StrictModel):
    uuid: str
    of: str


class _Agreed(Consent):
    uuid: str


def guidelines_now(store: Store) -> tuple[str, str]:
    """The hash and the text of the guidelines that labelers see now: the last ones of the store,
    else the package's.
    """
    if not store.guidelines():
        store.add_guidelines(GUIDELINES.read_text("utf-8"))
    return list(store.guidelines().items())[-1]


def rendered(text: str) -> str:
    """Guidelines as HTML. HTML in them is shown as text, and images by their names."""
    from markdown_it import MarkdownIt

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    return str(markdown.render(text))


@dataclass
class LabelApi:
    """The store, as annotators see it. Raises `BadLabel` for messages that it does not take.

    qualify: gold items that everybody answers first.
    """

    store: Store
    qualify: int = 0

    def next(self, annotator: str, message: Any) -> State:
        """The item to label now. The message says nothing."""
        return self._next(annotator)

    def submit(self, annotator: str, message: Any) -> State:
        """Store a label, a skip or a flag, and return the next item. The same message again changes
        nothing.
        """
        sent = read(_Submitted, message)
        exam, stored = self._exam(annotator), self.store.item(sent.item)
        if not exam.passed and stored.item.gold is None:
            if exam.failed:
                raise BadLabel(_closed(exam))
            raise BadLabel("some other items come first; reload the page")
        if sent.guidelines not in self.store.guidelines():
            raise BadLabel("the guidelines of this label are not in the store; reload the page")
        order, facts = _order(stored.item, sent.shown), sent.model_dump(exclude={"shown"})
        self.store.submit(Event(annotator=annotator, order=order, **facts))
        notice = "The data changed. Your label is kept for the version that you saw."
        return self._next(annotator, notice if stored.retired else "")

    def undo(self, annotator: str, message: Any) -> State:
        """Undo the annotator's event and return its item, filled in as it was."""
        sent = read(_Undone, message)
        query = "SELECT content FROM events WHERE uuid = ? AND item IS NOT NULL"
        rows = self.store.rows(query, sent.of)
        if not rows:
            raise BadLabel("there is nothing to undo")
        event = event_of(rows[0])
        if event.kind in ("label", "skip") and self._exam(annotator).failed:
            raise BadLabel("the first items cannot be answered again")
        self.store.submit(Event(sent.uuid, annotator, "undo", {"of": event.uuid}, event.item))
        shown = assignment.take(self.store, annotator, str(event.item))
        state = self._state(annotator, shown, "Undone. Change it.")
        if event.kind == "label":
            value, seconds = dict(event.payload), event.seconds or 0.0
            names = state["item"]["shown"]
            state["draft"] = {"shown": names, "value": value, "seconds": seconds}
        return state

    def consent(self, annotator: str, message: Any) -> State:
        """Store whether the annotator's labels may be shared, and how the data name them, as the
        page asks it.
        """
        sent = read(_Agreed, message)
        payload = {**sent.model_dump(exclude={"uuid"}), "terms": TERMS}
        self.store.submit(Event(sent.uuid, annotator, "consent", payload))
        return {"consent": sent.granted}

    def results(self, annotator: str, message: Any) -> State:
        """What the others said of the annotator's items, with their notes, but without names and the
        texts that they wrote; nothing that was said before can be undone then.
        """
        if not self._next(annotator)["results"]:
            raise BadLabel("what others said is shown at the end, if this project allows it")
        self.store.submit(Event(str(uuid4()), annotator, "results", {}))
        return {"results": self._results(annotator)}

    def _results(self, annotator: str) -> list[State]:
        rows = []
        for entry in labeled(self.store):
            item, votes = entry.item, list[State]()
            own = annotator in (item.author, *entry.votes, *entry.flags)
            flags = [(who, {"flagged": True, "note": note}) for who, note in entry.flags.items()]
            for who, label in [*entry.votes.items(), *flags]:
                public = {part: label.get(part) for part in ("better", "ranks", "good", "flagged")}
                note = visible(label.get("note", ""))
                votes.append({**public, "mine": who == annotator, "note": note})
            if item.results and own:
                shown = assignment.assigned(entry.stored, annotator)
                answers = [turns[-1]["text"] for turns in shown_item(shown)["responses"]]
                seen = {"prompt": visible(item.prompt[-1]["content"]), "answers": answers}
                rows.append({**seen, "order": shown.order, "votes": sorted(votes, key=str)})
        return rows

    def _exam(self, annotator: str) -> Qualification:
        return qualification(self.store, annotator, self.qualify)

    def _next(self, annotator: str, notice: str = "") -> State:
        """The next item, or why there is none."""
        shown = assignment.next_item(self.store, annotator, self.qualify)
        exam = self._exam(annotator)
        if exam.asked and not exam.answered:
            notice = notice or (
                f"The first {exam.asked} items have known answers. They show whether the task is "
                "clear."
            )
        if shown and shown.stored.item.disputed:
            notice = notice or "People disagree here. Your label decides; say why in the note."
        state = self._state(annotator, shown, notice)
        if shown is None and not exam.passed:
            state["end"] = _closed(exam)
            state["last"] = None if exam.failed else state["last"]
        return state

    def _state(self, annotator: str, shown: Assignment | None, notice: str) -> State:
        """What the page shows. end: why there is no item."""
        last, agreed = self.store.last(annotator), self.store.last(annotator, "consent")
        mine, total = assignment.progress(self.store, annotator)
        return {
            "item": None if shown is None else shown_item(shown),
            "draft": None,
            "progress": {"mine": mine, "total": total},
            "last": last and last.uuid,
            "guidelines": guidelines_now(self.store)[0],
            "consent": agreed and agreed.payload,
            "notice": notice,
            "results": not shown and bool(self._results(annotator)),
            "end": "You have labeled every item that is yours.",
        }


def _closed(exam: Qualification) -> str:
    """The message to someone who has not qualified."""
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
    names, answers = _names(item), []
    for index in assigned.order:
        answers.append(list(map(shown_turn, turns_of_answer(item.responses[index]))))
    view = {
        "id": item.id,
        "task": item.task,
        "prompt": list(map(shown_turn, item.prompt)),
        "responses": answers,
        "shown": [names[index] for index in assigned.order],
    }
    if item.task == "demonstration" and answers:
        view["text"] = turns_of_answer(item.responses[0])[-1]["content"]
    return view


def _names(item: Item) -> list[str]:
    """A name for each response that depends on its text only, so that it says nothing about the
    order in the store.
    """
    return [sha256_of([answer])[:16] for answer in item.answers]


def _order(item: Item, shown: Sequence[str]) -> tuple[int, ...]:
    """The indices of the responses in the order in which a page showed them."""
    names = _names(item)
    if sorted(shown) != sorted(names):
        raise BadLabel("the page shows other answers than the store has; reload the page")
    return tuple(map(names.index, shown))
