"""Lines that are entered: questions, and commands that begin with a slash. Ctrl-C stops an answer."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from alignkit.errors import AlignkitError, DataError, did_you_mean, message_of
from alignkit.stopping import handling
from alignkit_apps.chat.screen import Screen, interactive
from alignkit_apps.chat.session import Session
from alignkit_apps.chat.terminal_feedback import COMMANDS, TerminalFeedback
from alignkit_apps.chat.terminal_feedback import NAMES as FEEDBACK
from alignkit_apps.policies.policy import TooLong

PROMPT = "> "
HELP = {
    "/help": "this list",
    "/reset": "forget the conversation",
    "/system TEXT": "set the system message and forget the conversation; without TEXT: no system message",
    "/retry": "answer the last question again",
    **COMMANDS,
    "/quit": "leave; also Ctrl-D",
    "//TEXT": "ask /TEXT",
}
NAMES = ("/help", "/reset", "/system", "/retry", "/quit", *FEEDBACK)


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


def talk(
    session: Session, screen: Screen, read: Callable[[str], str] = input, feedback: TerminalFeedback | None = None
) -> None:
    """Answer what is entered until it ends. read: returns a line, given the prompt; raises EOFError at the end.

    feedback: which the session hands its exchanges.
    """
    feedback = feedback or TerminalFeedback()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    person = interactive()
    if person:
        with suppress(ImportError):  # some builds of Python have none
            import readline  # noqa: F401 - `input` then edits lines and remembers them
        screen.line("/help lists commands.", "dim")
    interrupts = Interrupts()
    for line in _lines(read, PROMPT if person else "", screen if person else None):
        if line.startswith("/") and not line.startswith("//"):
            text = _command(line, session, screen, feedback)
            if text is None:
                return
        else:
            text = line.removeprefix("/") if line.startswith("//") else line
        if text:
            _answer(text, session, screen, interrupts, feedback)


def _lines(read: Callable[[str], str], prompt: str, screen: Screen | None) -> Iterator[str]:
    """The lines that are entered, without empty ones. screen: a person's, where Ctrl-C gives up a line."""
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


def _command(line: str, session: Session, screen: Screen, feedback: TerminalFeedback) -> str | None:
    """Do what a command says. Returns a question to ask, or an empty text; None to leave."""
    name, _, rest = line.partition(" ")
    if name == "/quit":
        return None
    if name in ("/retry", "/reset", "/system"):
        feedback.begin()  # what was answered before cannot be talked about any more
    if name == "/retry":
        question = session.take_back()
        if not question:
            screen.line("there is nothing to retry")
        return question
    if name == "/help":
        for entry, what in HELP.items():
            screen.line(f"{entry:<17}{what}")
    elif name in FEEDBACK:
        try:
            screen.line(feedback.command(name, rest.strip(), session), "dim")
        except AlignkitError as error:
            screen.line(f"not kept: {error}")
    elif name == "/reset":
        session.reset()
        screen.line("the conversation is forgotten", "dim")
    elif name == "/system":
        session.system = rest.strip()
        session.reset()
        screen.line("the system message is set" if session.system else "there is no system message", "dim")
    else:
        screen.line(" ".join(filter(None, [f"no command {name};", did_you_mean(name, NAMES), "/help lists them"])))
    return ""


def _answer(text: str, session: Session, screen: Screen, interrupts: Interrupts, feedback: TerminalFeedback) -> None:
    """Show every policy's answer to a question."""
    session.begin(text)
    feedback.begin()
    errors: list[tuple[str, AlignkitError]] = []
    with interrupts.caught():
        try:
            for name in session.turns:
                if interrupts.wanted():
                    screen.begin(name)
                    try:
                        screen.end(session.ask(name, screen.more, interrupts.wanted))
                    except AlignkitError as error:
                        errors.append((name, error))
        finally:
            screen.done()
    if note := feedback.end():
        screen.line(note, "dim")
    for name, failed in errors:
        screen.line(f"{name}: {message_of(failed)}" if len(session.turns) > 1 else message_of(failed))
        if isinstance(failed, TooLong):
            screen.line("  help: /reset begins a new conversation")
        elif not isinstance(failed, DataError):
            raise failed
