"""Lines that are entered: questions, and commands that begin with a slash. Ctrl-C stops an
answer.
"""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

from alignkit.errors import AlignkitError, DataError, did_you_mean, handling, message_of
from alignkit_plugins.people.collection import Collection, Exchange
from alignkit_plugins.people.labels import TERMS
from alignkit_plugins.policies.chat_screen import Screen, interactive
from alignkit_plugins.policies.chat_session import Session
from alignkit_plugins.policies.policy import TooLong

PROMPT = "> "
HELP = {
    "/help": "this list",
    "/reset": "forget the conversation",
    "/system TEXT": (
        "set the system message and forget the conversation; without TEXT: no system message"
    ),
    "/retry": "answer the last question again",
    "/good, /bad": "with --collect: keep whether the answer is good; of two: /good a",
    "/consent no": "take your consent back, and all that you said with it",
    "/quit": "leave; also Ctrl-D",
    "//TEXT": "ask /TEXT",
}
NAMES = ("/help", "/reset", "/system", "/retry", "/good", "/bad", "/consent", "/quit")
LETTERS = ("a", "b")


@dataclass
class Kept:
    """What is kept of a talk. collection: where; None: nowhere. items: of the last answers, by
    their policies.
    """

    annotator: str = ""
    collection: Collection | None = None
    items: dict[str, str] = field(default_factory=dict)

    def keep(self, name: str, exchange: Exchange) -> None:
        """Keep an answer that is complete."""
        if self.collection is not None:
            self.items[name] = self.collection.keep(self.annotator, exchange)

    def rate(self, good: bool, letter: str, names: list[str]) -> str:
        """Keep a thumb, and return what happened, in words. letter: of the answer, if there are
        two.
        """
        if self.collection is None:
            return "not kept; `--collect FILE.feedback` keeps it"
        if len(names) > 1 and letter not in LETTERS:
            return "which answer? a or b, such as /good a"
        name = names[LETTERS.index(letter)] if len(names) > 1 else names[0]
        if name not in self.items:
            return "there is no answer that was kept"
        self.collection.rate(self.annotator, self.items[name], good)
        return f"kept: {name} is {'good' if good else 'bad'}"

    def consent(self, answer: str) -> str:
        """Take consent back, or say what it is about."""
        if self.collection is None:
            return "nothing is kept without --collect"
        if answer != "no":
            return TERMS
        self.collection.agree(self.annotator, False)
        self.collection = None
        return "nothing more is kept, and recipes no longer read what you said"


class Interrupts:
    """Ctrl-C while policies answer: the first one stops the answers, and the second one leaves."""

    def __init__(self) -> None:
        self.stopped = False

    def wanted(self) -> bool:
        return not self.stopped

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Raises KeyboardInterrupt for the second one."""
        self.stopped = False
        with handling([signal.SIGINT], self._interrupted):
            yield

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True


def talk(session: Session, screen: Screen, kept: Kept, read: Callable[[str], str] = input) -> None:
    """Answer what is entered until it ends. read: returns a line, given the prompt; raises EOFError
    at the end.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    person = interactive()
    if person:
        with suppress(ImportError):  # some builds of Python have none
            import readline  # noqa: F401 - `input` then edits lines and remembers them
        screen.line("/help lists commands.", "dim")
    interrupts = Interrupts()
    for line in _lines(read, PROMPT if person else "", screen if person else None):
        text = line.removeprefix("/") if line.startswith("//") else line
        if line.startswith("/") and not line.startswith("//"):
            name, _, rest = line.partition(" ")
            if name == "/quit":
                return
            text = _command(name, rest.strip(), session, screen, kept)
        if text:
            _answer(text, session, screen, interrupts, kept)


def _lines(read: Callable[[str], str], prompt: str, screen: Screen | None) -> Iterator[str]:
    """The lines that are entered, without empty ones. screen: a person's, where Ctrl-C gives up a
    line.
    """
    interrupted = False
    while True:
        try:
            line = read(prompt).strip()
        except EOFError:
            if screen is not None:
                screen.line("")
            return
        except KeyboardInterrupt:
            if screen is None or interrupted:
                raise
            interrupted = True
            screen.line("\nCtrl-C again, Ctrl-D or /quit leaves.", "dim")
            continue
        interrupted = False
        if line:
            yield line


def _command(name: str, rest: str, session: Session, screen: Screen, kept: Kept) -> str:
    """Do what a command says. Returns a question to ask, or an empty text."""
    question = ""
    if name == "/help":
        for entry, what in HELP.items():
            screen.line(f"{entry:<17}{what}")
    elif name == "/retry":
        question = session.take_back()
        if not question:
            screen.line("there is nothing to retry")
    elif name == "/reset":
        session.reset()
        screen.line("the conversation is forgotten", "dim")
    elif name == "/system":
        session.system = rest
        session.reset()
        screen.line(
            "the system message is set" if session.system else "there is no system message", "dim"
        )
    elif name in ("/good", "/bad", "/consent"):
        try:
            said = (
                kept.consent(rest)
                if name == "/consent"
                else kept.rate(name == "/good", rest, list(session.turns))
            )
            screen.line(said, "dim")
        except AlignkitError as error:
            screen.line(f"not kept: {error}")
    else:
        screen.line(
            " ".join(
                filter(None, [f"no command {name};", did_you_mean(name, NAMES), "/help lists them"])
            )
        )
    return question


def _answer(
    text: str, session: Session, screen: Screen, interrupts: Interrupts, kept: Kept
) -> None:
    """Show every policy's answer to a question."""
    session.begin(text)
    kept.items.clear()
    errors: list[tuple[str, AlignkitError]] = []
    notes: list[str] = []
    with interrupts.caught():
        try:
            for name in session.turns:
                if not interrupts.wanted():
                    break
                screen.begin(name)
                try:
                    said = session.ask(name, screen.more, interrupts.wanted)
                except AlignkitError as error:
                    errors.append((name, error))
                    continue
                screen.end(said)
                try:
                    if said.exchange is not None:
                        kept.keep(name, said.exchange)
                except AlignkitError as error:
                    notes.append(f"not kept: {error}")
        finally:
            screen.done()
    for note in dict.fromkeys(notes):
        screen.line(note, "dim")
    for name, failed in errors:
        screen.line(
            f"{name}: {message_of(failed)}" if len(session.turns) > 1 else message_of(failed)
        )
        if isinstance(failed, TooLong):
            screen.line("  help: /reset begins a new conversation")
        elif not isinstance(failed, DataError):
            raise failed
