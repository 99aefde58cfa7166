"""A conversation with one or more policies, each of which has its own."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from alignkit.data.group import Message
from alignkit.sampling import Sampling
from alignkit_plugins.people.collection import Exchange
from alignkit_plugins.policies.policy import Opened


@dataclass(frozen=True)
class Said:
    """An answer as it is shown. rewards: its scores by name. exchange: None if it was stopped."""

    text: str
    rewards: Mapping[str, float | None]
    exchange: Exchange | None


class Session:
    """What was said so far, and how answers are sampled.

    system: the system message; empty for none. turns: each policy's conversation by its name,
    without that message.
    """

    def __init__(
        self, opened: Opened, sampling: Sampling, system: str = "", seed: int | None = None
    ):
        """seed: of the answer to the first question; by default another one each time."""
        self.opened, self.sampling, self.system = opened, sampling, system
        self.turns: dict[str, list[Message]] = {name: [] for name in opened.policies}
        self._seed = (secrets.randbits(32) if seed is None else seed) - 1
        self._question = ""
        self._before: dict[str, int] = {}  # turns of each policy before the question

    def reset(self) -> None:
        """Forget what was said."""
        self._question = ""
        for turns in self.turns.values():
            turns.clear()

    def take_back(self) -> str:
        """Forget the answers to the last question; returns the question, which is empty if there is
        none.
        """
        if self._question:
            for name, turns in self.turns.items():
                del turns[self._before[name] :]
        return self._question

    def begin(self, question: str) -> None:
        """Say what will be asked. Each question has draws of its own."""
        self._question, self._before = (
            question,
            {name: len(turns) for name, turns in self.turns.items()},
        )
        self._seed += 1

    def ask(self, name: str, heard: Callable[[str], None], wanted: Callable[[], bool]) -> Said:
        """A policy's answer to the question; part of its conversation, unless it was stopped before
        its first word.

        heard: is given the text in pieces. wanted: false ends the answer. Raises TooLong or
        DataError for a question that it cannot read.
        """
        policy, turns = self.opened.policies[name], self.turns[name]
        asked = Message(role="user", content=self._question)
        system = [Message(role="system", content=self.system)] if self.system else []
        messages = [*system, *turns, asked]
        answer = policy.answer(policy.prompt(messages), self.sampling, self._seed, heard, wanted)
        stopped = not wanted()
        rewards = self.opened.rewards(policy, messages, answer)
        if answer.text or not stopped:
            turns += [asked, Message(role="assistant", content=answer.text)]
        if stopped:
            return Said(answer.text, rewards, None)
        first = next(iter(rewards.values()), None)
        temperature = self.sampling.temperature
        return Said(
            answer.text,
            rewards,
            Exchange(policy.word, messages, answer.text, temperature, self._seed, first),
        )
