"""A talk in the terminal: what is entered, and the answers, one after the other. Ctrl-C stops an
answer.
"""

from __future__ import annotations

import io
import secrets
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import FrameType

from rich.console import Console
from rich.text import Text

from alignkit.data.group import Message
from alignkit.errors import (
    DataError,
    did_you_mean,
    handling,
    message_of,
)
from alignkit.io.console import Reporter
from alignkit.io.text import printable
from alignkit.sampling import SamplingOptions
from alignkit_plugins.policies.policy import Opened, TooLong, opened
from alignkit_plugins.policies.words import Named


class Talk:
    """One person's conversation with policies, each of which has its own.

    system: the system message; empty for none. turns: each policy's conversation by its name,
    without that message.
    """

    def __init__(
        self,
        models: Opened,
        system: str = "",
        seed: int | None = None,
        console: Console | None = None,
    ):
        """seed: of the first answers; by default another one each time."""
        self.models, self.system = models, system
        self.console = console or Console(highlight=False)
        self.turns: dict[str, list[Message]] = {name: [] for name in models.policies}
        self.seed = (secrets.randbits(32) if seed is None else seed) - 1
        self.question = ""
        self.before: dict[str, int] = {}  # turns of each policy before the question
        self.stopped = False  # by Ctrl-C

    def run(self, read: Callable[[str], str] = input) -> None:
        """Answer what is entered until it ends.

        read: returns a line, for a prompt; raises EOFError at the end.
        """
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        prompt = ""
        if sys.stdin.isatty() and sys.stdout.isatty():
            prompt = "> "
            with suppress(ImportError):  # some builds of Python have none
                import readline  # noqa: F401 - `input` then edits lines and remembers them
            self.say("/help lists commands; Ctrl-C stops an answer, Ctrl-D leaves.")
        while True:
            try:
                line = read(prompt).strip()
            except EOFError:
                return
            if line.partition(" ")[0] == "/quit":
                return
            if line:
                self.enter(line)

    def enter(self, line: str) -> None:
        """Answer a question, or do what a command says."""
        name, _, rest = line.partition(" ")
        if not line.startswith("/") or line.startswith("//"):
            self.ask(line.removeprefix("/"))
        elif name in COMMANDS:
            COMMANDS[name][1](self, rest.strip())
        else:
            self.say(f"no command {name}; {did_you_mean(name, COMMANDS) or '/help lists them'}")

    def say(self, text: str, style: str = "dim") -> None:
        """Print a line that is no part of an answer."""
        self.console.print(Text(printable(text), style), soft_wrap=True)

    def write(self, text: str) -> None:
        """Print more of an answer."""
        self.console.file.write(printable(text))
        self.console.file.flush()

    # Answers

    def ask(self, question: str) -> None:
        """Show every policy's answer to a question. Each question has a seed of its own."""
        self.question = question
        self.before = {name: len(turns) for name, turns in self.turns.items()}
        self.seed += 1
        self.stopped = False
        with handling([signal.SIGINT], self._interrupted):
            for name in self.turns:
                if self.stopped:
                    break
                if len(self.turns) > 1:
                    self.say(f"{name}:", "bold")
                try:
                    self._answer(name)
                except DataError as error:
                    self.say(message_of(error))
                    if isinstance(error, TooLong):
                        self.say("  help: /reset begins a new conversation")

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        """The first Ctrl-C stops the answers, and the second one leaves."""
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True

    def _answer(self, name: str) -> None:
        """Show one policy's answer. It becomes a turn, unless it was stopped before its first
        word.
        """
        policy, turns, sampling = self.models.policies[name], self.turns[name], self.models.sampling
        question = Message(role="user", content=self.question)
        system = [Message(role="system", content=self.system)] if self.system else []
        messages = [*system, *turns, question]
        prompt = policy.prompt(messages)
        answer = policy.answer(prompt, sampling, self.seed, self.write, lambda: not self.stopped)
        if not answer.text.endswith("\n"):
            self.write("\n")
        rewards = self.models.rewards(messages, answer)
        remarks = []
        for reward, score in rewards.items():
            remarks.append(f"{reward} no score" if score is None else f"{reward} {score:.3g}")
        if self.stopped:
            remarks.append("stopped")
        if remarks:
            self.say(f"[{', '.join(remarks)}]")
        if answer.text or not self.stopped:
            turns += [question, Message(role="assistant", content=answer.text)]

    # Commands, each with the rest of its line

    def help(self, rest: str) -> None:
        """List the commands."""
        for name, (what, _) in COMMANDS.items():
            self.say(f"{name:<10}{what}", "")

    def reset(self, rest: str) -> None:
        """Forget the conversation."""
        self.question = ""
        for turns in self.turns.values():
            turns.clear()
        self.say("the conversation is forgotten")

    def set_system(self, rest: str) -> None:
        """Set the system message."""
        self.system = rest
        self.reset("")

    def retry(self, rest: str) -> None:
        """Answer the last question again."""
        if not self.question:
            self.say("there is nothing to retry")
            return
        for name, turns in self.turns.items():
            del turns[self.before[name] :]
        self.ask(self.question)


COMMANDS: Mapping[str, tuple[str, Callable[[Talk, str], None]]] = {
    "/help": ("this list; //TEXT asks /TEXT", Talk.help),
    "/reset": ("forget the conversation", Talk.reset),
    "/system": (
        "TEXT: set the system message and forget the conversation; without TEXT: none",
        Talk.set_system,
    ),
    "/retry": ("answer the last question again", Talk.retry),
    "/quit": ("leave; also Ctrl-D", Talk.reset),
}


def in_terminal(named: Named, overrides: Sequence[str], system: str) -> None:
    """Talk in the terminal until the input ends."""
    reporter = Reporter()
    with opened(named, overrides, reporter, lambda: None, "alignkit chat") as models:
        sampling = SamplingOptions(sampling=models.sampling).described()
        reporter.say(printable(f"{' and '.join(models.policies)}: {sampling}"))
        Talk(models, system).run()
