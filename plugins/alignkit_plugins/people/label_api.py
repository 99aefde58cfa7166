"""What the page asks for and sends: the next item, labels, undo and adjudication, as plain JSON
values.

The page never learns who wrote an answer, what a gold label is, or in which order the answers lie
in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import Field

from alignkit.data.group import sha256_of, turns_of
from alignkit_plugins.people import assignment
from alignkit_plugins.people.assignment import LEAST, Assignment, Qualification, qualification
from alignkit_plugins.people.effective_labels import Labeled, consents, disputes
from alignkit_plugins.people.formatted import shown_turn
from alignkit_plugins.people.guidelines import Guidelines
from alignkit_plugins.people.items import Answer, Item
from alignkit_plugins.people.labels import FLAGS, SIDES, TERMS, BadLabel, StrictModel, displayed
from alignkit_plugins.people.messages import Agreed, Undone, read, visible
from alignkit_plugins.people.records import Event, event_of
from alignkit_plugins.people.store import Store

State = dict[str, Any]
BINS = {
    "preferred_safe": "only the better one is safe",
    "both_safe": "both are safe",
    "both_unsafe": "both are unsafe",
}


class _Submitted(StrictModel):
    uuid: str
    kind: Literal["label", "skip", "flag"]
    item: str
    revision: int
    shown: list[str] = Field(max_length=9)
    payload: dict[str, Any]
    guidelines: str
    seconds: float | None = None


class _Settled(_Submitted):
    kind: Literal["adjudicate"]  # type: ignore[assignment]


@dataclass
class LabelApi:
    """The store and the guidelines, as annotators see them. Raises `BadLabel` for messages that it
    does not take.

    qualify: gold items that everybody answers first. what_next: said to whoever has labeled
    everything.
    """

    store: Store
    guidelines: Guidelines
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
        exam = qualification(self.store, annotator, self.qualify)
        if not exam.passed and self.store.item(sent.item).item.gold is None:
            raise BadLabel(
                _closed(exam) if exam.failed else "some other items come first; reload the page"
            )
        notice = self._store(annotator, sent)
        return self._next(annotator, notice)

    def undo(self, annotator: str, message: Any) -> State:
        """Undo the annotator's event and return its item, filled in as it was."""
        sent = read(Undone, message)
        rows = self.store.rows("SELECT * FROM events WHERE uuid = ?", sent.of)
        if not rows or rows[0]["item"] is None:
            raise BadLabel("there is nothing to undo")
        event = event_of(rows[0])
        exam = qualification(self.store, annotator, self.qualify)
        if event.kind in ("label", "skip") and exam.failed:
            raise BadLabel("the first items cannot be answered again")
        item, payload = str(event.item), {"of": event.uuid}
        self.store.submit(Event(sent.uuid, annotator, "undo", payload, item, event.revision))
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
        """Store whether the annotator's labels may be shared, as the page asks it."""
        sent = read(Agreed, message)
        self.store.submit(
            Event(sent.uuid, annotator, "consent", {"granted": sent.granted, "terms": TERMS})
        )
        return {"consent": sent.granted}

    # Adjudication

    def next_dispute(self, annotator: str, message: Any) -> State:
        """The first item that this person should adjudicate, with what everyone said. The message
        says nothing.
        """
        return self._dispute(annotator)

    def adjudicate(self, annotator: str, message: Any) -> State:
        """Store the label that settles an item, and return the next item."""
        sent = read(_Settled, message)
        own = "SELECT 1 FROM current WHERE item = ? AND annotator = ? AND kind = 'label'"
        if self.store.rows(own, sent.item, annotator):
            raise BadLabel("you labeled this item, so somebody else settles it")
        notice = self._store(annotator, sent)
        return self._dispute(annotator, notice=notice)

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
        query = (
            "SELECT uuid FROM effective WHERE annotator = ? AND kind = 'adjudicate' ORDER BY "
            "created DESC"
        )
        settled = self.store.rows(query, annotator)
        state["last"] = settled[0]["uuid"] if settled else None
        state["progress"] = {
            "mine": len(settled),
            "skipped": 0,
            "total": len(settled) + len(left),
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
            seconds=sent.seconds,
        )
        if self.store.submit(event).stale:
            return "The data changed while you labeled. Your label is kept for the earlier version."
        return ""

    # What the page shows

    def _state(self, annotator: str, shown: Assignment | None, notice: str = "") -> State:
        last = self.store.last(annotator)
        progress = assignment.progress(self.store, annotator)
        consent = consents(self.store).get(annotator)
        people = self.store.rows(
            "SELECT count(DISTINCT annotator) AS n FROM current WHERE kind = 'label'"
        )[0]["n"]
        todo = {"sharing": progress.mine > 0 or consent is not None, "quality": people > 1}
        if shown is None:
            todo["adjudicate"] = bool(disputes(self.store, annotator))
        return {
            "item": None if shown is None else shown_item(shown),
            "draft": None,
            "progress": asdict(progress),
            "todo": todo,
            "last": None if last is None else last.uuid,
            "guidelines": self.guidelines.current()[0],
            "consent": consent,
            "notice": notice,
            "end": None if shown else {"next": self.what_next(self.store)},
        }

    def _next(self, annotator: str, notice: str = "") -> State:
        """The next item, or why there is none."""
        state = self._state(
            annotator, assignment.next_item(self.store, annotator, self.qualify), notice
        )
        exam = qualification(self.store, annotator, self.qualify)
        if state["end"] and not exam.passed:
            state["end"] = {"heading": "Thank you", "said": _closed(exam), "next": ""}
            state["last"] = None if exam.failed else state["last"]
        elif exam.asked and not exam.answered:
            known = (
                f"The first {exam.asked} items have known answers. They show whether the task is "
                "clear."
            )
            state["notice"] = notice or known
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
    """A name for each response that depends on its text only, so that it says nothing about the
    order in the store.
    """
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
    votes = [
        {"annotator": v.annotator, "said": in_words(displayed(v.label, order))} for v in entry.votes
    ]
    if entry.stored.item.gold is not None:
        votes.append(
            {
                "annotator": "known answer",
                "said": in_words(displayed(entry.stored.item.gold, order)),
            }
        )
    for kind, notes in (("flag", entry.flags), ("skip", entry.skips)):
        votes += [{"annotator": who, "said": f"{kind}: {visible(text)}"} for who, text in notes]
    return votes


def in_words(label: Mapping[str, Any]) -> str:
    """A label as it was given on the page, as people say it, such as `A, better` or `B > A = C`."""
    parts = []
    if "side" in label:
        parts.append(", ".join(filter(None, (label["side"], label.get("margin")))))
    if "safety" in label:
        parts.append(BINS[label["safety"]])
    if "ranks" in label:
        shared: dict[int, list[str]] = {}
        for name, rank in zip(SIDES, label["ranks"], strict=False):
            shared.setdefault(rank, []).append(name)
        parts.append(" > ".join(" = ".join(shared[rank]) for rank in sorted(shared)))
    for name, scores in zip(SIDES, label.get("scores", ()), strict=False):
        parts.append(
            f"{name}: " + ", ".join(f"{criterion} {score:g}" for criterion, score in scores.items())
        )
    for name, flags in zip(SIDES, label.get("flags", ()), strict=False):
        if flags:
            parts.append(f"{name}: {', '.join(FLAGS[flag] for flag in flags)}")
    if "good" in label:
        parts.append("good" if label["good"] else "bad")
    parts += [visible(str(label[key])) for key in ("text", "note") if label.get(key)]
    return "; ".join(parts)
