"""What the page of a chat asks for and sends, as plain JSON values. Conversations are in the page, not here.

With `blind`, the page does not learn who wrote an answer until somebody has chosen one.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from alignkit.data.group import Message
from alignkit.errors import AlignkitError, message_of
from alignkit.stopping import Stopped
from alignkit_apps.chat.session import Said, Session
from alignkit_apps.policies.policy import Exchange, Opened, TooLong
from alignkit_apps.web.formatted import formatted
from alignkit_apps.web.messages import Agreed, Undone, read, visible
from alignkit_plugins.people.collection import Collection, Kept
from alignkit_plugins.people.items import LONGEST
from alignkit_plugins.people.labels import SIDES, BadLabel, Margin, StrictModel

State = dict[str, Any]
LONGEST_TURN = 1 << 20  # characters; a request has at most as many bytes


class _Turn(StrictModel):
    role: Literal["user", "assistant"]
    content: str = Field(max_length=LONGEST_TURN)


class Asked(StrictModel):
    """A question. sides: for each answer that is shown, the conversation that ends with the question.

    draw: which policy is on which side, if that is blind. round: how many questions the page has asked.
    """

    sides: list[list[_Turn]] = Field(min_length=1, max_length=2)
    draw: str = Field(max_length=64)
    round: int = Field(ge=0, lt=2**31)
    system: str = Field("", max_length=LONGEST)


class _Place(StrictModel):
    item: str
    answer: int


class _Rated(StrictModel):
    uuid: str
    kept: _Place
    good: bool


class _Chosen(StrictModel):
    uuid: str
    kept: list[_Place] = Field(min_length=2, max_length=2)
    side: Literal["A", "B"]
    margin: Margin


class _Edited(StrictModel):
    uuid: str
    kept: _Place
    text: str


class _Drawn(StrictModel):
    draw: str = Field(max_length=64)


@dataclass
class ChatApi:
    """Policies that are talked to on a page, and where it is kept. seed: None: another one for each question."""

    models: Opened
    sampling: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    blind: bool = False
    system: str = ""
    collection: Collection | None = None

    def setup(self, annotator: str) -> State:
        """What the page knows from the start."""
        used = Session(self.models, self.sampling).sampling
        names = list(self.models.policies)
        collect = None
        if self.collection is not None:
            known = {"file": self.collection.path.name, "license": self.collection.license}
            collect = {**known, "agreed": self.collection.agreed(annotator)}
        return {
            "sides": len(names),
            "names": None if self.blind else [visible(name) for name in names],
            "sampling": None if self.blind else [f"temperature {one.temperature}" for one in used.values()],
            "system": self.system,
            "collect": collect,
        }

    def names(self, annotator: str, message: Any) -> State:
        """Who wrote the answers of a draw."""
        return {"names": [visible(name) for name in self._order(read(_Drawn, message).draw)]}

    def _order(self, draw: str) -> list[str]:
        """The policies from left to right: by lot if it is blind, the same for each draw even in another process."""
        names = list(self.models.policies)
        lot = hashlib.sha256("\0".join([draw, *names]).encode()).digest()[0]
        return names[::-1] if self.blind and lot % 2 else names

    # Answers

    def checked(self, message: Any) -> Asked:
        """A question that can be asked. Raises BadLabel for any other."""
        asked = read(Asked, message)
        if len(asked.sides) != len(self.models.policies):
            raise BadLabel(f"the page shows {len(asked.sides)} answers, but there are {len(self.models.policies)}")
        questions = {(side[-1].role, side[-1].content) if side else ("", "") for side in asked.sides}
        if len(questions) > 1 or not all(role == "user" and text.strip() for role, text in questions):
            raise BadLabel("every conversation must end with the same question")
        return asked

    def answer(self, annotator: str, asked: Asked, tell: Callable[[State], None], wanted: Callable[[], bool]) -> None:
        """Answer a question, in the model's thread. tell: is given what happens; see `chat.js`."""
        kept: list[Exchange] = []
        seed = secrets.randbits(32) if self.seed is None else self.seed + asked.round
        session = Session(self.models, self.sampling, seed, asked.system, kept.append)
        order = self._order(asked.draw)
        for name, side in zip(order, asked.sides, strict=True):
            session.turns[name] = [Message(role=turn.role, content=turn.content) for turn in side[:-1]]
        session.begin(asked.sides[0][-1].content)
        for place, name in enumerate(order):
            if wanted():
                self._one(session, name, place, tell, wanted)
        if self.collection is not None and kept:
            try:
                self._keep(self.collection, annotator, order, kept, tell)
            except AlignkitError as error:
                tell({"unkept": str(error)})

    def _one(
        self, session: Session, name: str, side: int, tell: Callable[[State], None], wanted: Callable[[], bool]
    ) -> None:
        tell({"side": side, "begins": True})
        try:
            said = session.ask(name, lambda text: tell({"side": side, **_text(text)}), wanted)
        except Stopped:
            raise
        except Exception as error:  # whatever it is, it must not end the server; whoever asked hears of it
            text = message_of(error).removeprefix("error: ")
            for policy in self.models.policies.values() if self.blind else ():
                text = text.replace(policy.word, "the model").replace(policy.name, "the model")
            tell({"side": side, "error": visible(text), "too_long": isinstance(error, TooLong)})
        else:
            tell({"side": side, "said": {**_text(said.text), **_facts(said), "parts": formatted(said.text)}})

    def _keep(
        self,
        collection: Collection,
        annotator: str,
        order: Sequence[str],
        exchanges: Sequence[Exchange],
        tell: Callable[[State], None],
    ) -> None:
        """Keep the answers of all sides, and tell where they are."""
        if not collection.agreed(annotator):
            return
        kept = collection.keep(annotator, exchanges)
        found = {exchange.policy: one for exchange, one in zip(exchanges, kept, strict=True)}
        places = [found.get(self.models.policies[name].word) for name in order]
        tell({"kept": [vars(one) if isinstance(one, Kept) else None for one in places]})
        if faults := dict.fromkeys(one for one in kept if isinstance(one, str)):
            tell({"unkept": "; ".join(faults)})

    # What people say about them

    def consent(self, annotator: str, message: Any) -> State:
        """Store whether the annotator agrees to the terms."""
        sent = read(Agreed, message)
        self._collection().agree(annotator, sent.granted, sent.uuid)
        return {"agreed": sent.granted}

    def rate(self, annotator: str, message: Any) -> State:
        """Store a thumb. The same message again changes nothing."""
        sent = read(_Rated, message)
        return {"event": self._collection().rate(annotator, _place(sent.kept), sent.good, sent.uuid)}

    def choose(self, annotator: str, message: Any) -> State:
        """Store which answer is better. The same message again changes nothing."""
        sent = read(_Chosen, message)
        pair = [_place(one) for one in sent.kept]
        event = self._collection().choose(annotator, pair, SIDES.index(sent.side), sent.margin, sent.uuid)
        return {"event": event}

    def edit(self, annotator: str, message: Any) -> State:
        """Store what an answer should have been. The same message again changes nothing."""
        sent = read(_Edited, message)
        return {"event": self._collection().edit(annotator, _place(sent.kept), sent.text, sent.uuid)}

    def undo(self, annotator: str, message: Any) -> State:
        """Take back what the annotator said."""
        sent = read(Undone, message)
        self._collection().undo(annotator, sent.of, sent.uuid)
        return {}

    def _collection(self) -> Collection:
        if self.collection is None:
            raise BadLabel("nothing is kept; start the page with --collect FILE.feedback")
        return self.collection


def _text(text: str) -> State:
    """A text as policies read it, and as it is shown if that differs."""
    shown = visible(text)
    return {"text": text} if shown == text else {"text": text, "shown": shown}


def _facts(said: Said) -> State:
    known = {name: score for name, score in said.rewards.items() if score is None or math.isfinite(score)}
    rewards = {visible(name): known.get(name) for name in said.rewards}
    return {"rewards": rewards, "of": said.of, "stopped": said.stopped}


def _place(place: _Place) -> Kept:
    return Kept(place.item, place.answer)
