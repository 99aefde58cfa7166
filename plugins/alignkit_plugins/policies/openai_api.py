"""OpenAI's format: requests, in which a key that would be ignored is an error, and replies, whole or streamed."""

from __future__ import annotations

import json
import secrets
import time
import uuid
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from alignkit.errors import BadRow
from alignkit.options import Options
from alignkit.recipe.mistakes import path_text, shown, validated
from alignkit_plugins.formats.columns import read_message
from alignkit_plugins.people.guard import Refused
from alignkit_plugins.policies.policy import Answer

# The values of keys that ask for nothing, besides null. Any other value is refused, because it would be ignored.
NEUTRAL: Mapping[str, Any] = {
    "n": 1,
    "logprobs": False,
    "top_logprobs": 0,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "response_format": {"type": "text"},
    "tools": [],
    "tool_choice": "none",
    "functions": [],
    "modalities": ["text"],
    "reasoning_effort": None,
}
# Keys that change no answer, whatever their values are.
IGNORED = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "parallel_tool_calls",
    "prompt_cache_key",
    "safety_identifier",
}


class RequestError(Refused):
    """A request that cannot be answered. status: of HTTP. param: the key that is wrong. code: for programs."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ):
        super().__init__(status, message)
        self.param, self.code = param, code

    def body(self) -> dict[str, Any]:
        """Return OpenAI's JSON of an error."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        }


class StreamOptions(Options):
    """How a streamed answer is sent: include_usage adds a chunk with the number of tokens."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # changes nothing


Stop = Annotated[str, Field(min_length=1)]


class ChatRequest(Options):
    """The keys of POST /v1/chat/completions; docs/chat.md lists them."""

    model: str | None = None  # may be left out if there is only one
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)  # the same
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    stop: Stop | list[Stop] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    messages: list[Any] = Field(min_length=1)

    def sampling(self) -> dict[str, Any]:
        """Return what the request says of sampling, by the names of `Sampling`."""
        keys = self.model_dump(include={"temperature", "top_p", "top_k"}, exclude_none=True)
        if most := self.max_completion_tokens or self.max_tokens:
            keys["max_new_tokens"] = most
        if self.stop is not None:
            keys["stop"] = [self.stop] if isinstance(self.stop, str) else self.stop
        return keys


def read_chat(body: bytes) -> ChatRequest:
    """Return a request, with a seed and its messages read. Raises RequestError for a key or a value that is wrong."""
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            400, f"the request is not valid JSON: {str(error) or 'nested too deeply'}"
        ) from None
    if not isinstance(raw, dict):
        raise RequestError(400, f"the request must be a JSON object, not {shown(raw)}")
    for key, neutral in NEUTRAL.items():
        value = raw.pop(key, None)
        if value not in (neutral, None):
            raise RequestError(400, f"{key}: {shown(value)} is not supported; leave it out", key)
    keys = {key: value for key, value in raw.items() if key not in IGNORED}
    request, mistakes = validated(ChatRequest, keys)
    if request is None:
        first = min(mistakes, key=lambda mistake: str(mistake.keys))
        text = f"{first.text}; {first.help}" if first.help else first.text
        raise RequestError(400, text, path_text(first.keys) or None)
    if request.max_tokens and request.max_completion_tokens not in (None, request.max_tokens):
        raise RequestError(
            400, "max_tokens and max_completion_tokens differ; set one of them", "max_tokens"
        )
    if request.stream_options is not None and not request.stream:
        raise RequestError(400, "stream_options needs 'stream': true", "stream_options")
    try:
        request.messages = [
            read_message(turn, f"messages[{at}]") for at, turn in enumerate(request.messages)
        ]
    except BadRow as error:
        raise RequestError(400, str(error), "messages") from None
    if request.seed is None:
        request.seed = secrets.randbits(63)
    return request


class Reply:
    """A reply to a request, whole or in chunks. model: its name. prompt_tokens: that were read."""

    def __init__(self, model: str):
        self.prompt_tokens = 0
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self._head = {"id": self.id, "created": int(time.time()), "model": model}

    def whole(self, answer: Answer) -> dict[str, Any]:
        """Return the reply with all of an answer."""
        message = {"role": "assistant", "content": answer.text}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": _reason(answer),
        }
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": self._usage(answer),
        }

    def chunk(self, answer: Answer | None = None, **delta: str) -> str:
        """Return a chunk with more of the answer. answer: all of it, which ends the reply."""
        finish = None if answer is None else _reason(answer)
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event({**self._head, "object": "chat.completion.chunk", "choices": [choice]})

    def usage(self, answer: Answer) -> str:
        """Return the chunk with the number of tokens."""
        return event(
            {
                **self._head,
                "object": "chat.completion.chunk",
                "choices": [],
                "usage": self._usage(answer),
            }
        )

    def _usage(self, answer: Answer) -> dict[str, int]:
        read, written = self.prompt_tokens, len(answer.tokens)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _reason(answer: Answer) -> str:
    return "stop" if answer.ended else "length"


def event(body: Mapping[str, Any]) -> str:
    """Return a chunk of a stream."""
    return f"data: {json.dumps(body)}\n\n"
