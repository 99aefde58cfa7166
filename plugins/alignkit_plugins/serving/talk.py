"""A talk in the terminal: what is entered, and the answers, one after the other. Ctrl-C stops an
answer.
"""

from __future__ import annotations

import io
import secrets
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType

from rich.console import Console
from rich.text import Text

from alignkit.contract.settings import SamplingOptions
from alignkit.data.group import Message, assistant_turn, user_turn
from alignkit.errors import DataError, message_of
from alignkit.io.console import Reporter, Terminal
from alignkit.io.text import printable
from alignkit.runs.signals import handling
from alignkit_plugins.command_line.words import Named
from alignkit_plugins.serving.policy import Opened, opened

RESET = "/reset"
HELP = f"{RESET} begins a new conversation; Ctrl-C stops an answer, Ctrl-D leaves."


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
        self.console = console or Terminal()
        self.turns: dict[str, list[Message]] = {name: [] for name in models.policies}
        self.seed = secrets.randbits(32) if seed is None else seed
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
            self.say(HELP)
        while True:
            try:
                line = read(prompt).strip()
            except EOFError:
                return
            if line == RESET:
                for turns in self.turns.values():
                    turns.clear()
                self.say("the conversation is forgotten")
            elif line.startswith("/") and line[1:].isalpha():  # such as /help
                self.say(HELP)
            elif line:
                self.ask(line)

    def say(self, text: str, style: str = "dim") -> None:
        """Print a line that is no part of an answer."""
        self.console.print(Text(printable(text), style), soft_wrap=True)

    def write(self, text: str) -> None:
        """Print more of an answer."""
        self.console.file.write(printable(text))
        self.console.file.flush()

    def ask(self, question: str) -> None:
        """Show every policy's answer to a question. Each question has a seed of its own."""
        self.stopped = False
        with handling([signal.SIGINT], self._interrupted):
            for name in self.turns:
                if self.stopped:
                    break
                if len(self.turns) > 1:
                    self.say(f"{name}:", "bold")
                try:
                    self._answer(name, question)
                except DataError as error:
                    self.say(f"{message_of(error)}; {HELP}")
        self.seed += 1

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        """The first Ctrl-C stops the answers, and the second one leaves."""
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True

    def _answer(self, name: str, question: str) -> None:
        """Show one policy's answer. It becomes a turn, unless it was stopped before its first
        word.
        """
        policy, turns, sampling = self.models.policies[name], self.turns[name], self.models.sampling
        question_turn = user_turn(question)
        system = [Message(role="system", content=self.system)] if self.system else []
        messages = [*system, *turns, question_turn]
        prompt = policy.prompt(messages)
        answer = policy.answer(prompt, sampling, self.seed, self.write, lambda: not self.stopped)
        if not answer.text.endswith("\n"):
            self.write("\n")
        remarks = []
        for reward, score in self.models.rewards(messages, answer).items():
            remarks.append(f"{reward} no score" if score is None else f"{reward} {score:.3g}")
        if self.stopped:
            remarks.append("stopped")
        if remarks:
            self.say(f"[{', '.join(remarks)}]")
        if answer.text or not self.stopped:
            turns += [question_turn, assistant_turn(answer.text)]


def in_terminal(named: Named, overrides: Sequence[str], system: str) -> None:
    """Talk in the terminal until the input ends."""
    reporter = Reporter()
    with opened(named, overrides, reporter, lambda: None, "alignkit chat") as models:
        sampling = SamplingOptions(sampling=models.sampling).described()
        reporter.say(printable(f"{' and '.join(models.policies)}: {sampling}"))
        Talk(models, system).run()
