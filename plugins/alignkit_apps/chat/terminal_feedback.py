"""What a person says in the terminal about the last answers: thumbs, choices and edits."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field

from alignkit.errors import AlignkitError, did_you_mean
from alignkit_apps.chat.session import Session
from alignkit_apps.policies.policy import Exchange
from alignkit_plugins.people.collection import TERMS, Collection, Kept
from alignkit_plugins.people.labels import DEGREES

COMMANDS = {
    "/good, /bad": "keep whether the answer is good; of two: /good a",
    "/a, /b [MARGIN]": f"this answer is better ({', '.join(reversed(DEGREES))}), and both continue from it",
    "/edit TEXT": "keep what the answer should have been, and continue from it; of two: /edit a TEXT; "
    "without TEXT your editor opens",
    "/consent no": "take your consent back, and all that you said with it",
}
NAMES = ("/good", "/bad", "/a", "/b", "/edit", "/consent")
LETTERS = ("a", "b")


@dataclass
class TerminalFeedback:
    """The last answers, and what becomes of what is said about them.

    collection: where it is kept; None: nowhere. edit: lets a person change a text; None if it was not changed.
    """

    annotator: str = ""
    collection: Collection | None = None
    edit: Callable[[str], str | None] = lambda text: None
    exchanges: list[Exchange] = field(default_factory=list)
    _kept: dict[str, Kept | str] = field(default_factory=dict)
    _chosen: str = ""  # the word of the policy that the conversation continued from

    def begin(self) -> None:
        """A question is about to be asked."""
        self.exchanges.clear()
        self._kept, self._chosen = {}, ""

    def end(self) -> str:
        """All policies have answered. Returns what a person should know."""
        if self.collection is None or not self.exchanges:
            return ""
        try:
            kept = self.collection.keep(self.annotator, self.exchanges)
        except AlignkitError as error:
            return f"not kept: {error}"
        self._kept = {exchange.policy: one for exchange, one in zip(self.exchanges, kept, strict=True)}
        faults = dict.fromkeys(one for one in kept if isinstance(one, str))
        return f"not kept: {'; '.join(faults)}" if faults else ""

    def command(self, name: str, rest: str, session: Session) -> str:
        """Do what a command says, and return what happened, in words."""
        if name == "/consent":
            return self._consent(rest)
        if name in ("/a", "/b"):
            return self._choose(LETTERS.index(name[1]), rest, session)
        policy, rest = self._which(rest, session)
        if not policy:
            return rest
        return self._edit(policy, rest, session) if name == "/edit" else self._rate(name, policy, session)

    def _which(self, rest: str, session: Session) -> tuple[str, str]:
        """The name of the policy that a command is about, and the rest of the line; or no name, and what is wrong."""
        names = list(session.turns)
        answered = {exchange.policy for exchange in self.exchanges}
        if not answered:
            return "", "there is no complete answer yet"
        first, _, others = rest.partition(" ")
        if len(names) > 1 and first.lower() in LETTERS:
            name, rest = names[LETTERS.index(first.lower())], others.strip()
        elif len(names) > 1 and not self._chosen:
            return "", "which answer? a or b, such as /good a"
        else:
            name = self._chosen or names[0]
        word = session.opened.policies[name].word
        return (name, rest) if word in answered else ("", "that answer is not complete")

    def _rate(self, name: str, policy: str, session: Session) -> str:
        kept, fault = self._place(policy, session)
        if kept is None or self.collection is None:
            return fault
        self.collection.rate(self.annotator, kept, name == "/good")
        return f"kept: {policy} is {name[1:]}" if len(session.turns) > 1 else f"kept: {name[1:]}"

    def _choose(self, better: int, margin: str, session: Session) -> str:
        names = list(session.turns)
        if len(names) < 2:
            return "there is one answer only; /good and /bad rate it"
        if len(self.exchanges) < 2:
            return "there are no two complete answers yet"
        if margin and margin not in DEGREES:
            return f"no margin {shlex.quote(margin)}; {did_you_mean(margin, DEGREES) or ', '.join(reversed(DEGREES))}"
        said = f"both continue from {names[better]}"
        places = [self._place(name, session) for name in names]
        found = [kept for kept, _ in places if kept is not None]
        if self.collection is not None and len(found) == 2:
            self.collection.choose(self.annotator, found, better, margin or "better")
            said = f"kept: {names[better]} is {_words(margin or 'better')}; {said}"
        elif self.collection is not None:
            said = f"{next(fault for kept, fault in places if kept is None)}; {said}"
        self._chosen = names[better]
        session.continue_from(self._chosen)
        return said

    def _edit(self, policy: str, text: str, session: Session) -> str:
        last = session.answer_of(policy)
        wanted = text or self.edit(last)
        if wanted is None or wanted == last:
            return "nothing was changed"
        kept, said = self._place(policy, session)
        if kept is not None and self.collection is not None:
            self.collection.edit(self.annotator, kept, wanted)
            said = "kept: the edited answer"
        self._chosen = policy
        session.continue_from(policy, wanted)
        return f"{said}; {'both continue' if len(session.turns) > 1 else 'it continues'} from there"

    def _consent(self, answer: str) -> str:
        if self.collection is None:
            return "nothing is kept without --collect"
        if answer != "no":
            return TERMS
        self.collection.agree(self.annotator, False)
        self.collection = None
        return "nothing more is kept, and recipes no longer read what you said"

    def _place(self, policy: str, session: Session) -> tuple[Kept | None, str]:
        """Where an answer is kept, or why it is not."""
        if self.collection is None:
            return None, "not kept; `--collect FILE.feedback` keeps it"
        kept = self._kept.get(session.opened.policies[policy].word)
        return (kept, "") if isinstance(kept, Kept) else (None, "this answer is not kept")


def _words(margin: str) -> str:
    return {"better": "better", "unsure": "negligibly better"}.get(margin, f"{margin} better")
