"""A talk in the terminal: what is entered, and the answers, one after the other. Ctrl-C stops an
answer.
"""

from __future__ import annotations

import io
import secrets
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.text import Text

from alignkit.data.group import Message
from alignkit.errors import (
    DataError,
    did_you_mean,
    handling,
    message_of,
    refuse,
)
from alignkit.io.console import Reporter
from alignkit.io.text import printable
from alignkit.sampling import SamplingOptions
from alignkit_plugins.people.collection import Collection, Exchange
from alignkit_plugins.people.hosting import annotators_of
from alignkit_plugins.people.labels import TERMS
from alignkit_plugins.policies.policy import Opened, TooLong, opened
from alignkit_plugins.policies.words import Named

LETTERS = ("a", "b")  # of the answers of two policies


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
        collection: Collection | None = None,
        annotator: str = "",
    ):
        """seed: of the first answers; by default another one each time. collection: keeps what the
        annotator allows.
        """
        self.models, self.system = models, system
        self.console = console or Console(highlight=False)
        self.collection, self.annotator = collection, annotator
        self.turns: dict[str, list[Message]] = {name: [] for name in models.policies}
        self.seed = (secrets.randbits(32) if seed is None else seed) - 1
        self.question = ""
        self.before: dict[str, int] = {}  # turns of each policy before the question
        self.items: dict[str, str] = {}  # that were kept of the last answers, by their policies
        self.stopped = False  # by Ctrl-C

    def run(self, read: Callable[[str], str] = input) -> None:
        """Answer what is entered until it ends.

        read: returns a line, for a prompt; raises EOFError at the end.
        """
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        prompt = ""
        if interactive():
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
            try:
                self.enter(line)
            except DataError as error:
                self.say(message_of(error))

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
        if not question:
            return
        self.question = question
        self.before = {name: len(turns) for name, turns in self.turns.items()}
        self.seed += 1
        self.items.clear()
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
        """Show one policy's answer. It becomes a turn, unless it was stopped before its first word."""
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
        if self.collection is not None and not self.stopped:
            first = next(iter(rewards.values()), None)
            exchange = Exchange(
                policy.word, messages, answer.text, sampling.temperature, self.seed, first
            )
            self.items[name] = self.collection.keep(self.annotator, exchange)

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

    def rate(self, letter: str, good: bool) -> None:
        """Keep a thumb. letter: of the answer, if there are two."""
        names = dict(zip(LETTERS, self.turns, strict=False))
        name = names.get(letter, "") if len(names) > 1 else names["a"]
        if self.collection is None:
            self.say("not kept; `--collect FILE.feedback` keeps it")
        elif not name:
            self.say("which answer? a or b, such as /good a")
        elif name not in self.items:
            self.say("there is no answer that was kept")
        else:
            self.collection.rate(self.annotator, self.items[name], good)
            self.say(f"kept: {name} is {'good' if good else 'bad'}")

    def consent(self, rest: str) -> None:
        """Take consent back, or say what it is about."""
        if self.collection is None:
            self.say("nothing is kept without --collect")
        elif rest != "no":
            self.say(TERMS)
        else:
            self.collection.agree(self.annotator, False)
            self.collection = None
            self.say("nothing more is kept, and recipes no longer read what you said")


COMMANDS: Mapping[str, tuple[str, Callable[[Talk, str], None]]] = {
    "/help": ("this list; //TEXT asks /TEXT", Talk.help),
    "/reset": ("forget the conversation", Talk.reset),
    "/system": (
        "TEXT: set the system message and forget the conversation; without TEXT: none",
        Talk.set_system,
    ),
    "/retry": ("answer the last question again", Talk.retry),
    "/good": (
        "with --collect: keep that the answer is good; of two: /good a",
        partial(Talk.rate, good=True),
    ),
    "/bad": ("the same of a bad one", partial(Talk.rate, good=False)),
    "/consent": ("no: take your consent back, and all that you said with it", Talk.consent),
    "/quit": ("leave; also Ctrl-D", Talk.reset),
}


def in_terminal(named: Named, overrides: Sequence[str], system: str, collect: Path | None) -> None:
    """Talk in the terminal until the input ends. collect: a store for what is kept."""
    reporter = Reporter()
    with ExitStack() as stack:
        collection, annotator = None, ""
        if collect is not None:
            (annotator,) = annotators_of(())
            collection = stack.enter_context(closing(Collection(collect, names=named.names)))
            if not agreed(collection, annotator):
                collection = None
        opening = opened(named, overrides, reporter, lambda: None, "alignkit chat")
        models = stack.enter_context(opening)
        sampling = SamplingOptions(sampling=models.sampling).described()
        reporter.say(printable(f"{' and '.join(models.policies)}: {sampling}"))
        Talk(models, system, collection=collection, annotator=annotator).run()


def agreed(collection: Collection, annotator: str) -> bool:
    """Whether the annotator agrees that answers are kept, now or earlier.

    Raises RecipeError if nobody can be asked.
    """
    if collection.agreed(annotator):
        text = (
            f"{annotator} agreed that this is kept in {collection.path}; /consent no takes it back"
        )
        print(printable(text), file=sys.stderr)
        return True
    if not interactive():
        help = "run it in a terminal, where it asks; it remembers a yes"
        refuse(f"--collect: {annotator} has not agreed that anything is kept", help)
    license = collection.license or "none"
    print(printable(f"{TERMS}\nFile: {collection.path}. License: {license}. Name: {annotator}."))
    answer = ""
    with suppress(EOFError):
        answer = input("Keep it? Enter yes or no: ").strip().lower()
    collection.agree(annotator, answer == "yes")
    print("it is kept" if answer == "yes" else "nothing is kept; only yes is a yes")
    return answer == "yes"


def interactive() -> bool:
    """Whether a person types and sees the answers."""
    return sys.stdin.isatty() and sys.stdout.isatty()
