"""Who writes critiques and revisions: a policy of the run, or a model behind an OpenAI-compatible server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from alignkit import Context, Field, Message
from alignkit.data.spoken import after_thoughts
from alignkit_http import Malformed, Remote, RemoteOptions
from alignkit_http.chat import Chat

Conversation = Sequence[Message]


@dataclass(frozen=True)
class Written:
    """What a model wrote. reason: why it wrote nothing that can be used, if so; `text` is then empty."""

    text: str = ""
    truncated: bool = False
    reason: str = ""


class Writer(Protocol):
    """A model that continues conversations."""

    name: str

    def write(self, conversations: Sequence[Conversation], most: int, seed: int) -> list[Written]:
        """What it says next in each, in order. most: tokens."""
        ...


class PolicyWriter:
    """A policy of this run. sampling: as in training; how long a text may be is said each time."""

    def __init__(self, context: Context, role: str, sampling: Mapping[str, Any]):
        self.name, self._context = role, context
        lengths = ("max_new_tokens", "min_new_tokens")
        self._sampling = {key: value for key, value in sampling.items() if key not in lengths}

    def write(self, conversations: Sequence[Conversation], most: int, seed: int) -> list[Written]:
        groups = self._context.models.sample(
            self.name, conversations, seed=seed, samples_per_prompt=1, max_new_tokens=most, **self._sampling
        )
        written = []
        for group in groups:
            if not group.responses:
                written.append(Written(reason="the conversation leaves no room"))
            else:
                written.append(Written(_answer(group.responses[0].text), group.responses[0].truncated))
        return written


class Server(RemoteOptions):
    """A model behind an OpenAI-compatible server."""

    base_url: str = Field(description="address of the API, such as http://localhost:8000/v1")
    model: str = Field(min_length=1, description="model name on the server")
    request: dict[str, Any] = Field({}, description="additional fields of the request; null removes a field")


class ServerWriter:
    """Asks a chat-completions endpoint. Replies are stored on disk, so that none is paid for twice."""

    def __init__(self, context: Context, options: Server, sampling: Mapping[str, Any]):
        self.name, self._context, self._options = options.model, context, options
        self._sampling = {key: sampling[key] for key in ("temperature", "top_p") if key in sampling}
        remote = Remote("revise", options, "chat/completions", context.cache, _stored)
        self._chat = Chat(remote, options.model, list(options.request))

    def write(self, conversations: Sequence[Conversation], most: int, seed: int) -> list[Written]:
        bodies = [self._body(conversation, most) for conversation in conversations]
        replies = self._chat.ask(
            bodies,
            lambda place, reply: reply.reason or str(reply.value[2]),  # an empty text is not the server's fault
            lambda reason: "ask the server the same question by hand, and change 'model' or 'request'",
            self._context.progress,
        )
        return [Written(reason=reply.reason) if reply.reason else Written(*reply.value) for reply in replies]

    def _body(self, conversation: Conversation, most: int) -> dict[str, Any]:
        """The request's JSON."""
        messages = [{"role": turn["role"], "content": turn["content"]} for turn in conversation]
        body = {"model": self._options.model, "messages": messages, "max_tokens": most, **self._sampling}
        return {key: value for key, value in (body | self._options.request).items() if value is not None}


def _stored(text: bytes) -> list[Any]:
    """The fields of `Written` in a chat completion, as they are stored."""
    try:
        choice = json.loads(text)["choices"][0]
        message, end = choice["message"], choice.get("finish_reason")
        if message.get("refusal") or end == "content_filter":
            return ["", False, "the server refused"]
        return [_answer(message.get("content") or ""), end == "length", ""]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise Malformed("the reply is not a chat completion") from None


def _answer(text: str) -> str:
    """The text without the thoughts before it; empty if they have no end."""
    return (after_thoughts(text) or "").strip()
