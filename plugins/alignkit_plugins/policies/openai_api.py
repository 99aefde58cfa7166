"""OpenAI's format: requests, in which a key that would be ignored is an error, and replies, whole
or streamed.
"""

from __future__ import annotations

import json
import secrets
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from alignkit.data.group import Message
from alignkit.errors import BadRow
from alignkit.options import Options
from alignkit.recipe.mistakes import path_text, shown, validated
from alignkit_plugins.formats.columns import read_message
from alignkit_plugins.people.server import Refused
from alignkit_plugins.policies.streaming import Answer

DONE = "data: [DONE]\n\n"

# Keys that clients send with values that ask for nothing. Any other value is refused, because it
# would be ignored.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1, None),
    "logprobs": (False, None),
    "top_logprobs": (0, None),
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "logit_bias": ({}, None),
    "response_format": ({"type": "text"}, None),
    "tools": ([], None),
    "tool_choice": ("none", None),
    "functions": ([], None),
    "modalities": (["text"], None),
    "reasoning_effort": (None,),
}
# Keys that change no answer, whatever their values are.
IGNORED = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "parallel_tool_calls",
    "prompt_cache_key",
    "safety_identifier",
)


class RequestError(Refused):
    """A request that cannot be answered. status: of HTTP. param: the key that is wrong. code: for
    programs.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ):
        super().__init__(status, message)
        self.param, self.code = param, code

    def body(self) -> dict[str, Any]:
        """OpenAI's JSON of an error."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        }


class StreamOptions(Options):
    """How a streamed answer is sent."""

    include_usage: bool | None = Field(
        None, description="whether a last chunk has the number of tokens"
    )
    include_obfuscation: bool | None = Field(None, description="changes nothing")


class ChatKeys(Options):
    """The keys of POST /v1/chat/completions."""

    model: str | None = Field(
        None, description="a name of GET /v1/models; may be left out if there is only one"
    )
    max_tokens: int | None = Field(None, ge=1, description="most tokens of an answer")
    max_completion_tokens: int | None = Field(None, ge=1, description="the same as max_tokens")
    temperature: float | None = Field(None, ge=0, le=100, description="0: the likeliest token")
    top_p: float | None = Field(
        None, gt=0, le=1, description="sample from the likeliest tokens of this probability"
    )
    top_k: int | None = Field(
        None, ge=0, description="sample from this many of the likeliest tokens; 0: all"
    )
    stop: str | list[str] | None = Field(
        None, description="a text that ends an answer, or several; not in the answer"
    )
    seed: int | None = Field(
        None, ge=-(2**63), lt=2**64, description="of sampling; equal requests have equal answers"
    )
    stream: bool | None = Field(None, description="whether to send the answer while it is written")
    stream_options: StreamOptions | None = Field(None, description="only with stream")
    messages: list[Any] = Field(min_length=1, description="the conversation: [{role, content}]")


@dataclass(frozen=True)
class Request:
    """What a client asks for. sampling: what it says about it, by the names of `Sampling`."""

    model: str | None
    messages: Sequence[Message]
    sampling: Mapping[str, Any]
    seed: int
    stream: bool
    usage: bool


def read_chat(body: bytes) -> Request:
    """A request for chat completions. Raises RequestError for a key or a value that is wrong."""
    keys = _read(body)
    if (
        keys.max_tokens
        and keys.max_completion_tokens
        and keys.max_tokens != keys.max_completion_tokens
    ):
        raise RequestError(
            400, "max_tokens and max_completion_tokens differ; set one of them", "max_tokens"
        )
    try:
        messages = [
            read_message(turn, f"messages[{place}]") for place, turn in enumerate(keys.messages)
        ]
    except BadRow as error:
        raise RequestError(400, str(error), "messages") from None
    stop = [keys.stop] if isinstance(keys.stop, str) else keys.stop
    if stop is not None and not all(stop):
        raise RequestError(400, "stop: expected texts of at least 1 character, got ''", "stop")
    if keys.stream_options is not None and not keys.stream:
        raise RequestError(400, "stream_options needs 'stream': true", "stream_options")
    given = {
        "max_new_tokens": keys.max_completion_tokens or keys.max_tokens,
        "temperature": keys.temperature,
        "top_p": keys.top_p,
        "top_k": keys.top_k,
        "stop": stop,
    }
    sampling = {name: value for name, value in given.items() if value is not None}
    usage = bool(keys.stream_options and keys.stream_options.include_usage)
    seed = secrets.randbits(63) if keys.seed is None else keys.seed
    return Request(keys.model, messages, sampling, seed, bool(keys.stream), usage)


def _read(body: bytes) -> ChatKeys:
    """The keys of a request."""
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            400, f"the request is not valid JSON: {str(error) or 'nested too deeply'}"
        ) from None
    if not isinstance(raw, dict):
        raise RequestError(400, f"the request must be a JSON object, not {shown(raw)}")
    for key, neutral in NEUTRAL.items():
        if key in raw and raw[key] not in neutral:
            raise RequestError(400, f"{key}: {shown(raw[key])} is not supported; leave it out", key)
    known = {key: value for key, value in raw.items() if key not in {*NEUTRAL, *IGNORED}}
    chat, mistakes = validated(ChatKeys, known)
    if chat is None:
        first = min(mistakes, key=lambda mistake: str(mistake.keys))
        text = f"{first.text}; {first.help}" if first.help else first.text
        raise RequestError(400, text, path_text(first.keys) or None)
    return chat


@dataclass
class Reply:
    """A reply to a request, whole or in chunks. prompt_tokens: that were read."""

    model: str
    prompt_tokens: int = 0
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The reply with all of an answer."""
        said = {"message": {"role": "assistant", "content": answer.text}, "logprobs": None}
        choice = {"index": 0, **said, "finish_reason": _reason(answer)}
        return {**self._frame("chat.completion", [choice]), "usage": self._usage(answer)}

    def opening(self) -> str:
        """The first chunk."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> str:
        """A chunk with more of the answer."""
        return self._chunk({"content": text})

    def ending(self, answer: Answer) -> str:
        """The last chunk with a choice."""
        return self._chunk({}, _reason(answer))

    def usage(self, answer: Answer) -> str:
        """The chunk with the number of tokens."""
        return event({**self._frame("chat.completion.chunk", []), "usage": self._usage(answer)})

    def _usage(self, answer: Answer) -> dict[str, int]:
        read, written = self.prompt_tokens, len(answer.tokens)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def _chunk(self, said: Any, finish: str | None = None) -> str:
        choice = {"index": 0, "delta": said, "logprobs": None, "finish_reason": finish}
        return event(self._frame("chat.completion.chunk", [choice]))

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def _reason(answer: Answer) -> str:
    return "stop" if answer.ended else "length"


def event(body: Mapping[str, Any]) -> str:
    """A chunk of a stream."""
    return f"data: {json.dumps(body)}\n\n"
