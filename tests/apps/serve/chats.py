"""Policies that answer as a test says, and the page on which they are talked to."""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from alignkit import Group
from alignkit.models.next_token import Sampling
from alignkit_apps.chat.chat_api import ChatApi
from alignkit_apps.chat.page import TaskQueue
from alignkit_apps.policies.policy import Opened, TooLong
from alignkit_apps.policies.streaming import Answer, Piece, Question
from alignkit_plugins.people.collection import Collection
from tests.patience import PATIENCE

NAMES = ("secret-sft", "secret-dpo")
ORIGIN = "http://127.0.0.1:8765"


def text_of(tokens: Sequence[int]) -> str:
    return "".join(map(chr, tokens))


@dataclass
class Scripted:
    """A policy, whose tokens are letters.

    says: its answer to a conversation, number by number. gate: which it waits for after `holds` words.
    """

    name: str
    says: Callable[[Sequence[Any], int], str]
    gate: threading.Event = field(default_factory=threading.Event)
    sampling: Sampling = field(default_factory=Sampling)
    reference: str = "scripted"
    best_of: int = 1
    service: Any = field(default_factory=lambda: SimpleNamespace(encoder=SimpleNamespace(digest="none", said=text_of)))
    words: int = 0  # that were written
    holds: int = 0
    waits: threading.Event = field(default_factory=threading.Event)  # set while it waits for the gate

    def __post_init__(self) -> None:
        self.gate.set()

    @property
    def word(self) -> str:
        return f"runs/x/{self.name}"

    def prompt(self, messages: Any) -> Any:
        if len(messages[-1]["content"]) > 50_000:
            raise TooLong(f"the prompt has 50001 tokens, but {self.name} reads at most 1023")
        return messages

    def room(self, prompt: Any) -> int:
        return 1000

    def streams(self, seed: int, count: int) -> list[int]:
        return list(range(count))

    def answer(self, questions: Sequence[Question], sampling: Sampling) -> list[list[Answer]]:
        return [[self._one(question, number) for number in range(len(question.streams))] for question in questions]

    def _one(self, question: Question, number: int) -> Answer:
        text = ""
        for word in re.findall(r"\s*\S+\s*$|\s*\S+", self.says(question.prompt, number)):
            while self.words >= self.holds and not self.gate.wait(0.02):
                self.waits.set()
                if not question.wanted():
                    break
            if not question.wanted():
                break
            text, self.words = text + word, self.words + 1
            question.heard(Piece(number, word))
        answer = Answer(text, tuple(map(ord, text)), True)
        question.heard(Piece(number, "", answer=answer))
        return answer


class ByLength:
    """A reward: longer answers are better."""

    name = "length"

    def score(self, groups: Sequence[Group]) -> list[Any]:
        return [SimpleNamespace(responses=[SimpleNamespace(scores={"reward": len(r.text or "") / 10})
                for r in group.responses]) for group in groups]  # fmt: skip


def echo(name: str) -> Callable[[Sequence[Any], int], str]:
    """Answers that say how many turns there were, and what the last one was."""

    def says(messages: Sequence[Any], number: int) -> str:
        if messages[-1]["content"] == "explode":
            raise RuntimeError(f"the weights of {name} melted")
        return f"{name[-3:]} heard {len(messages)}: {messages[-1]['content']}{'!' * number}"

    return says


@dataclass
class Chat:
    """A page that is served, and what is behind it."""

    app: Any
    sessions: Any
    policies: list[Scripted]
    tasks: TaskQueue
    collection: Collection | None

    def opened(self, annotator: str = "ada") -> Tab:
        """The page, opened with the annotator's link."""
        from starlette.testclient import TestClient

        client = TestClient(self.app, base_url=ORIGIN)
        html = client.get(f"/?token={self.sessions.links[annotator]}").text
        return Tab(client, re.findall(r'name="csrf" content="([^"]*)"', html)[0], html)


@dataclass
class Tab:
    """A browser, as Starlette's client."""

    client: Any
    csrf: str
    html: str

    def post(self, name: str, body: Any, **headers: str) -> Any:
        sent = {"origin": ORIGIN, "x-csrf-token": self.csrf, **headers}
        return self.client.post(f"/api/chat/{name}", json=body, headers=sent)

    def ask(self, text: str = "Hi", sides: int = 2, **more: Any) -> list[dict[str, Any]]:
        """What happens after a question."""
        reply = self.post("ask", asked(text, sides, **more))
        assert reply.status_code == 200, reply.text
        return events_in(reply.text)

    def agree(self, granted: bool = True) -> None:
        reply = self.post("consent", {"uuid": str(uuid.uuid4()), "granted": granted})
        assert reply.json() == {"agreed": granted}


def asked(text: str = "Hi", sides: int = 2, **more: Any) -> dict[str, Any]:
    """A question as the page sends it."""
    return {"sides": [[{"role": "user", "content": text}]] * sides, "draw": "d", "round": 0, "system": "", **more}


def events_in(text: str) -> list[dict[str, Any]]:
    """The events in lines of a reply, without the empty ones."""
    return [json.loads(line) for line in text.splitlines() if line]


def said(events: Sequence[dict[str, Any]]) -> list[str]:
    """The complete answers."""
    return [event["said"]["text"] for event in events if "said" in event]


@contextmanager
def chat(
    path: Path | None = None,
    names: Sequence[str] = NAMES,
    says: Callable[[str], Callable[[Sequence[Any], int], str]] = echo,
    rewards: bool = False,
    annotators: Sequence[str] = ("ada",),
    **more: Any,
) -> Iterator[Chat]:
    """A page with scripted policies, whose thread runs. path: where it is collected."""
    from alignkit_apps.chat.page import make_page
    from alignkit_apps.web.guard import Sessions

    policies = [Scripted(name, says(name)) for name in names]
    words = {policy.word: policy.name for policy in policies}
    collection = None if path is None else Collection(path, "CC0-1.0", words)
    known: Any = {policy.name: policy for policy in policies}
    scorers: Any = [ByLength()] if rewards else []
    models = Opened(known, scorers)
    tasks, sessions = TaskQueue(), Sessions(list(annotators))
    app = make_page(ChatApi(models, collection=collection, **more), tasks, sessions)
    thread = threading.Thread(target=tasks.run, daemon=True)
    thread.start()
    try:
        yield Chat(app, sessions, policies, tasks, collection)
    finally:
        tasks.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        if collection is not None:
            collection.close()
