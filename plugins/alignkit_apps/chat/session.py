"""A conversation with one or more policies, each of which has its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alignkit.data.group import Message
from alignkit.models.next_token import Sampling
from alignkit_apps.policies.policy import Exchange, Opened, Policy
from alignkit_apps.policies.streaming import Answer, Drafts, Piece, Question


@dataclass(frozen=True)
class Said:
    """An answer as it is shown. rewards: its scores by name. of: how many answers it was the best of."""

    text: str
    rewards: Mapping[str, float | None]
    of: int = 1
    stopped: bool = False


class Session:
    """What was said so far, and how answers are sampled.

    system: the system message; empty for none. turns: each policy's conversation by its name, without that message.
    """

    def __init__(
        self,
        opened: Opened,
        sampling: Mapping[str, Any],
        seed: int = 0,
        system: str = "",
        keep: Callable[[Exchange], None] = lambda exchange: None,
    ):
        """sampling: what differs from how policies sample. keep: is given every exchange that was complete."""
        self.opened, self.system, self._keep = opened, system, keep
        self.sampling = {name: replace(policy.sampling, **sampling) for name, policy in opened.policies.items()}
        self.turns: dict[str, list[Message]] = {name: [] for name in opened.policies}
        self._seed, self._asked, self._question = seed, 0, ""
        self._before: dict[str, int] = {}  # turns of each policy before the question
        self._own: dict[str, list[Message]] = {}  # of each policy that answered it, with the answer

    def reset(self) -> None:
        """Forget what was said."""
        self._question = ""
        for turns in self.turns.values():
            turns.clear()

    def take_back(self) -> str:
        """Forget the answers to the last question; returns the question, which is empty if there is none."""
        if self._question:
            for name, turns in self.turns.items():
                del turns[self._before[name] :]
        return self._question

    def begin(self, question: str) -> None:
        """Say what will be asked. Each question has draws of its own."""
        self._question, self._before = question, {name: len(turns) for name, turns in self.turns.items()}
        self._own = {}
        self._asked += 1

    def answer_of(self, name: str) -> str:
        """A policy's answer to the last question, as it was edited; empty if there is none."""
        return str(self._own[name][-1]["content"]) if name in self._own else ""

    def continue_from(self, name: str, text: str | None = None) -> None:
        """Let all policies continue from what one has answered last. text: what it should have answered."""
        if text is not None:
            self._own[name][-1] = Message(role="assistant", content=text)
        for turns in self.turns.values():
            turns[:] = self._own[name]
        self._before = dict.fromkeys(self._before, len(self._own[name]) - 2)

    def ask(self, name: str, heard: Callable[[str], None], wanted: Callable[[], bool]) -> Said:
        """A policy's answer to the question; part of its conversation, unless it was stopped before its first word.

        heard: is given the text in pieces; nothing if it is the best of several answers. wanted: false ends the answer.
        Raises TooLong or DataError for a question that it cannot read.
        """
        policy, turns = self.opened.policies[name], self.turns[name]
        asked = Message(role="user", content=self._question)
        system = [Message(role="system", content=self.system)] if self.system else []
        messages = [*system, *turns, asked]
        answer, used, seed = self._answer(policy, messages, heard, wanted)
        stopped = not wanted()
        (rewards,) = self.opened.rewards(policy, messages, [answer])
        said = Said(answer.text, rewards, policy.best_of, stopped)
        if said.text or not stopped:
            turns += [asked, Message(role="assistant", content=said.text)]
            self._own[name] = list(turns)
        if not stopped:
            drafts = answer.drafts or Drafts([answer], list(rewards.values())[:1], 0)
            texts = [one.text for one in drafts.answers]
            self._keep(Exchange(policy.word, messages, texts, used, seed, drafts.scores, drafts.place))
        return said

    def _answer(
        self, policy: Policy, messages: Sequence[Message], heard: Callable[[str], None], wanted: Callable[[], bool]
    ) -> tuple[Answer, Sampling, int]:
        """The answer, how it was sampled, and the seed."""
        prompt, seed = policy.prompt(messages), self._seed + self._asked - 1

        def hear(piece: Piece) -> None:
            if policy.best_of == 1:
                heard(piece.text)

        most = min(self.sampling[policy.name].max_new_tokens, policy.room(prompt))
        used = replace(self.sampling[policy.name], max_new_tokens=most)
        question = Question(prompt, policy.streams(seed, 1), hear, wanted=wanted, messages=messages)
        ((found,),) = policy.answer([question], used)
        return found, used, seed
