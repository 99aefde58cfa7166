"""What the page asks for and sends: the next item, drafts, labels, undo and adjudication, as plain JSON values.

The page never learns who wrote an answer, what a gold label is, in which order the answers lie in the store, or whether
an item comes again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from alignkit.data.group import sha256_of, turns_of
from alignkit_apps.label.annotator_stats import agreement_in_words, in_words, stats_of, told_items
from alignkit_apps.label.guidelines import Guidelines
from alignkit_apps.web.formatted import shown_turn
from alignkit_apps.web.messages import Agreed, Undone, read, visible
from alignkit_plugins.people import assignment
from alignkit_plugins.people.assignment import Assignment
from alignkit_plugins.people.effective_labels import Labeled, consents, disputes
from alignkit_plugins.people.items import Answer, Item
from alignkit_plugins.people.labels import BadLabel, StrictModel, displayed
from alignkit_plugins.people.qualification import Qualification, qualification
from alignkit_plugins.people.records import Event, event_of
from alignkit_plugins.people.store import Store

State = dict[str, Any]
TERMS = "My labels and notes may be shared with others, under a pseudonym and the license of the data."


class _Submitted(StrictModel):
    uuid: str
    kind: Literal["label", "skip", "flag", "adjudicate"]
    item: str
    revision: int
    shown: list[str] = Field(max_length=9)
    payload: dict[str, Any]
    guidelines: str
    seconds: float | None = None


class _Draft(StrictModel):
    item: str
    shown: list[str] = Field(max_length=9)
    value: dict[str, Any]
    seconds: float = 0.0


class _Contested(StrictModel):
    uuid: str
    item: str
    note: str


class _Nothing(StrictModel):
    pass


@dataclass
class LabelApi:
    """The store and the guidelines, as annotators see them. Raises `BadLabel` for messages that it does not take."""

    store: Store
    guidelines: Guidelines
    what_next: Callable[[Store], str] = lambda store: ""  # for whoever has labeled everything

    def next(self, annotator: str, message: Any) -> State:
        """The item to label now."""
        read(_Nothing, message)
        return self._next(annotator)

    def submit(self, annotator: str, message: Any) -> State:
        """Store a label, a skip or a flag, and return the next item. The same message again changes nothing."""
        sent = read(_Submitted, message)
        if sent.kind == "adjudicate":
            raise BadLabel("adjudicate on the page for it")
        exam = qualification(self.store, annotator)
        if not exam.passed and self.store.item(sent.item).item.gold is None:
            raise BadLabel(_closed(exam) if exam.failed else "some other items come first; reload the page")
        notice = self._store(annotator, sent)
        return self._next(annotator, notice)

    def undo(self, annotator: str, message: Any) -> State:
        """Undo the annotator's event and return its item, filled in as it was."""
        sent = read(Undone, message)
        event = self._undo(annotator, sent)
        if event.kind != "adjudicate" and event.item is not None:
            return self._state(
                annotator, assignment.take(self.store, annotator, event.item, event.occasion), "Undone. Change it."
            )
        return self._dispute(annotator, event.item)

    def draft(self, annotator: str, message: Any) -> State:
        """Keep what is not submitted yet, and the lease of its item. One that comes after the label is dropped."""
        sent = read(_Draft, message)
        self.store.item(sent.item)
        leased = self._leased(annotator, sent.item)
        labeled = "SELECT 1 FROM current WHERE annotator = ? AND item = ?"
        if leased is None and self.store.rows(labeled, annotator, sent.item):
            return {"saved": False}
        self.store.save_draft(annotator, sent.item, sent.model_dump(include={"shown", "value", "seconds"}))
        if leased is not None:
            assignment.take(self.store, annotator, sent.item, leased)
        return {"saved": True}

    def consent(self, annotator: str, message: Any) -> State:
        """Store whether the annotator's labels may be shared, as the page asks it (`TERMS`)."""
        sent = read(Agreed, message)
        payload = {"granted": sent.granted, "terms": TERMS}
        self.store.submit(Event(sent.uuid, annotator, "consent", payload))
        return {"consent": sent.granted}

    def contest(self, annotator: str, message: Any) -> State:
        """Store that the annotator takes a known answer for wrong; it must be one that the annotator may see."""
        sent = read(_Contested, message)
        if sent.item not in {miss.item for miss in stats_of(self.store, annotator).misses}:
            raise BadLabel("this item is not on the page of your labels")
        item = self.store.item(sent.item)
        self.store.submit(
            Event(sent.uuid, annotator, "contest", {"note": sent.note}, sent.item, revision=item.revision)
        )
        return {"contested": True}

    # Adjudication

    def next_dispute(self, annotator: str, message: Any) -> State:
        """The first item that someone should adjudicate, with what everyone said."""
        read(_Nothing, message)
        return self._dispute(annotator)

    def adjudicate(self, annotator: str, message: Any) -> State:
        """Store the label that settles an item, and return the next item."""
        sent = read(_Submitted, message)
        if sent.kind != "adjudicate":
            raise BadLabel("expected an adjudication")
        notice = self._store(annotator, sent)
        return self._dispute(annotator, notice=notice)

    def _dispute(self, annotator: str, wanted: str | None = None, notice: str = "") -> State:
        left = disputes(self.store)
        found = next((entry for entry in left if entry.stored.item.id == wanted), left[0] if left else None)
        shown = None if found is None else assignment.assignment(self.store, annotator, found.stored.item.id)
        state = self._state(annotator, shown, notice)
        query = "SELECT uuid FROM effective WHERE annotator = ? AND kind = 'adjudicate' ORDER BY created DESC"
        settled = self.store.rows(query, annotator)
        state["last"] = settled[0]["uuid"] if settled else None
        state["progress"] = {"mine": len(settled), "skipped": 0, "done": 0, "total": len(left), "pace": None}
        if found is not None and shown is not None:
            state["draft"] = None
            state["votes"] = _votes(found, shown.order)
        return state

    # Events

    def _store(self, annotator: str, sent: _Submitted) -> str:
        item = self.store.item(sent.item).item
        if sent.guidelines not in dict(self.store.guidelines()):
            raise BadLabel("the guidelines of this label are not in the store; reload the page")
        event = Event(
            uuid=sent.uuid,
            annotator=annotator,
            kind=sent.kind,
            payload=sent.payload,
            item=sent.item,
            revision=sent.revision,
            guidelines=sent.guidelines,
            order=_order(item, sent.shown),
            occasion=self._occasion(annotator, sent),
            seconds=sent.seconds,
        )
        receipt = self.store.submit(event)
        if receipt.stale:
            return "The data changed while you labeled. Your label is kept for the earlier version."
        return ""

    def _undo(self, annotator: str, sent: Undone) -> Event:
        found = self.store.rows("SELECT * FROM events WHERE uuid = ?", sent.of)
        if not found:
            raise BadLabel("there is nothing to undo")
        event = event_of(found[0])
        if event.kind == "label" and event.item in told_items(self.store, annotator):
            raise BadLabel("its known answer was shown on the page of your labels; contest it there")
        if event.kind in ("label", "skip") and qualification(self.store, annotator).failed:
            raise BadLabel("the first items cannot be answered again")
        payload = {"of": event.uuid}
        receipt = self.store.submit(
            Event(sent.uuid, annotator, "undo", payload, event.item, event.revision, occasion=event.occasion)
        )
        if receipt.new and event.item is not None and event.kind == "label":
            shown = [_names(self.store.item(event.item).item)[index] for index in event.order]
            draft = {"shown": shown, "value": dict(event.payload), "seconds": event.seconds or 0.0}
            self.store.save_draft(annotator, event.item, draft)
        return event

    def _occasion(self, annotator: str, sent: _Submitted) -> int:
        """Whether an item was shown again: as its lease says, or the label itself if it is sent twice."""
        known = self.store.rows("SELECT occasion FROM events WHERE uuid = ?", sent.uuid.lower())
        if known:
            return int(known[0]["occasion"])
        return self._leased(annotator, sent.item) or 0 if sent.kind != "adjudicate" else 0

    def _leased(self, annotator: str, item: str) -> int | None:
        found = self.store.rows("SELECT occasion FROM leases WHERE annotator = ? AND item = ?", annotator, item)
        return int(found[0]["occasion"]) if found else None

    # What the page shows

    def _state(self, annotator: str, shown: Assignment | None, notice: str = "") -> State:
        last = self.store.last(annotator)
        progress = assignment.progress(self.store, annotator)
        return {
            "item": None if shown is None else shown_item(shown),
            "draft": None if shown is None else self.store.draft(annotator, shown.stored.item.id),
            "progress": {name: getattr(progress, name) for name in ("mine", "skipped", "done", "total", "pace")},
            "last": None if last is None else last.uuid,
            "guidelines": self.guidelines.current()[0],
            "consent": consents(self.store).get(annotator),
            "notice": notice,
            "end": None if shown else {"agreement": agreement_in_words(self.store), "next": self.what_next(self.store)},
        }

    def _next(self, annotator: str, notice: str = "") -> State:
        """The next item, or why there is none."""
        state = self._state(annotator, assignment.next_item(self.store, annotator), notice)
        exam = qualification(self.store, annotator)
        if state["end"] and not exam.passed:
            state["end"] = {"heading": "Thank you", "said": _closed(exam), "agreement": "", "next": ""}
            state["last"] = None if exam.failed else state["last"]
        elif exam.answered < min(1, exam.asked):
            known = f"The first {exam.asked} items have known answers. They show whether the task is clear."
            state["notice"] = notice or known
        return state


def _closed(exam: Qualification) -> str:
    """For whoever has not qualified."""
    return (
        f"Of the first {exam.asked} items, {exam.right} of your answers match the known ones, and this project asks "
        f"for {exam.least:.0%}. So there is nothing more to label here. If you think that a known answer is wrong, ask "
        "whoever sent you the link."
    )


def shown_item(assigned: Assignment) -> dict[str, Any]:
    """An item as the page gets it: texts that cannot hide anything, and answers in the order of this annotator."""
    item = assigned.stored.item
    names = _names(item)
    view = {
        "id": item.id,
        "revision": assigned.stored.revision,
        "task": item.task,
        "prompt": [shown_turn(turn) for turn in item.prompt],
        "responses": [_answer(item.responses[index]) for index in assigned.order],
        "shown": [names[index] for index in assigned.order],
        "criteria": list(item.criteria),
    }
    if item.task == "demonstration" and item.responses:
        answer = item.responses[0]
        view["text"] = answer if isinstance(answer, str) else answer[-1]["content"]
    return view


def _names(item: Item) -> list[str]:
    """A name for each response that depends on its text only, so that it says nothing about the order in the store."""
    answers = [answer if isinstance(answer, str) else turns_of(answer) for answer in item.responses]
    return [sha256_of([answer])[:16] for answer in answers]


def _order(item: Item, shown: Sequence[str]) -> tuple[int, ...]:
    """The indices of the responses in the order in which a page showed them."""
    names, free, order = _names(item), list(range(len(item.responses))), []
    for name in shown:
        index = next((index for index in free if names[index] == name), None)
        if index is None:
            raise BadLabel("the page shows other answers than the store has; reload the page")
        free.remove(index)
        order.append(index)
    if free:
        raise BadLabel(f"the page shows {len(order)} of {len(names)} answers; reload the page")
    return tuple(order)


def _answer(answer: Answer) -> list[dict[str, Any]]:
    if isinstance(answer, str):
        return [shown_turn({"role": "assistant", "content": answer})]
    return [shown_turn(turn) for turn in answer]


def _votes(entry: Labeled, order: Sequence[int]) -> list[dict[str, Any]]:
    """What everyone said, as it would look with the answers in this order."""
    labels = {vote.annotator: displayed(vote.label, order) for vote in entry.votes}
    found: list[dict[str, Any]] = [
        {"annotator": who, "label": label, "said": in_words(label)} for who, label in labels.items()
    ]
    if entry.stored.item.gold is not None:
        found.append({"annotator": "known answer", "said": in_words(displayed(entry.stored.item.gold, order))})
    texts = {"flag": entry.flags, "contest": entry.contests, "skip": entry.skips, "note": entry.notes}
    found += [
        {"annotator": who, "said": f"{kind}: {visible(text)}"} for kind, said in texts.items() for who, text in said
    ]
    return found
