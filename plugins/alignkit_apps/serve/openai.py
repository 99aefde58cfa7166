"""OpenAI's format: requests, in which a key that would be ignored is an error, and replies, whole or streamed."""

from __future__ import annotations

import json
import secrets
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from alignkit.data.conversations import read_message
from alignkit.data.group import Message
from alignkit.errors import BadRow, did_you_mean
from alignkit.options import Options
from alignkit.recipe.document import Document
from alignkit.recipe.problems import Problems, path_text, shown
from alignkit.recipe.schema import allowed_keys
from alignkit.recipe.validation import validate
from alignkit.recipe.yaml_nodes import Mark
from alignkit_apps.policies.streaming import Answer, Piece, TokenLogprobs

MOST_ANSWERS = 128
TOP = 20  # tokens at a place
DONE = "data: [DONE]\n\n"
LEAST = -9999.0  # OpenAI's log-probability of what is impossible; JSON has no infinity

# Keys that clients send with values that ask for nothing. Any other value is refused, because it would be ignored.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
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
IGNORED = ("user", "metadata", "store", "service_tier", "parallel_tool_calls", "prompt_cache_key", "safety_identifier")


class RequestError(Exception):
    """A request that cannot be answered. status: of HTTP. param: the key that is wrong. code: for programs."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """OpenAI's JSON of an error."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class StreamOptions(Options):
    """How a streamed answer is sent."""

    include_usage: bool | None = Field(None, description="whether a last chunk has the number of tokens")
    include_obfuscation: bool | None = Field(None, description="changes nothing")


class ChatKeys(Options):
    """The keys of POST /v1/chat/completions."""

    model: str | None = Field(None, description="a name of GET /v1/models; may be left out if there is only one")
    max_tokens: int | None = Field(None, ge=1, description="most tokens of an answer")
    temperature: float | None = Field(None, ge=0, le=100, description="0: the likeliest token")
    top_p: float | None = Field(None, gt=0, le=1, description="sample from the likeliest tokens of this probability")
    top_k: int | None = Field(None, ge=0, description="sample from this many of the likeliest tokens; 0: all")
    stop: str | list[str] | None = Field(None, description="a text that ends an answer, or several; not in the answer")
    n: int | None = Field(None, ge=1, le=MOST_ANSWERS, description="answers to the prompt")
    seed: int | None = Field(None, ge=-(2**63), lt=2**64, description="of sampling; equal requests have equal answers")
    stream: bool | None = Field(None, description="whether to send the answer while it is written")
    stream_options: StreamOptions | None = Field(None, description="only with stream")
    messages: list[Any] = Field(min_length=1, description="the conversation: [{role, content}]")
    max_completion_tokens: int | None = Field(None, ge=1, description="the same as max_tokens")
    logprobs: bool | None = Field(None, description="whether to send the log-probability of every token")
    top_logprobs: int | None = Field(None, ge=0, le=TOP, description="likeliest tokens at each place; needs logprobs")


@dataclass(frozen=True)
class Request:
    """What a client asks for.

    sampling: what it says about it, by the names of `Sampling`. logprobs: how many of the likeliest tokens to send at
    each place; None: no log-probabilities.
    """

    model: str | None
    messages: Sequence[Message]
    sampling: Mapping[str, Any]
    n: int
    seed: int
    stream: bool
    usage: bool
    logprobs: int | None = None


def read_chat(body: bytes) -> Request:
    """A request for chat completions. Raises RequestError for a key or a value that is wrong."""
    keys = _read(body)
    if keys.max_tokens and keys.max_completion_tokens and keys.max_tokens != keys.max_completion_tokens:
        raise RequestError(400, "max_tokens and max_completion_tokens differ; set one of them", "max_tokens")
    if keys.top_logprobs is not None and not keys.logprobs:
        raise RequestError(400, "top_logprobs needs 'logprobs': true", "top_logprobs")
    try:
        messages = [read_message(turn, f"messages[{place}]") for place, turn in enumerate(keys.messages)]
    except BadRow as error:
        raise RequestError(400, str(error), "messages") from None
    logprobs = (keys.top_logprobs or 0) if keys.logprobs else None
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
        "stop": None if stop is None else tuple(stop),
    }
    sampling = {name: value for name, value in given.items() if value is not None}
    usage = bool(keys.stream_options and keys.stream_options.include_usage)
    seed = secrets.randbits(63) if keys.seed is None else keys.seed
    return Request(keys.model, messages, sampling, keys.n or 1, seed, bool(keys.stream), usage, logprobs)


def _read(body: bytes) -> ChatKeys:
    """The keys of a request."""
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the request is not valid JSON: {str(error) or 'nested too deeply'}") from None
    if not isinstance(raw, dict):
        raise RequestError(400, f"the request must be a JSON object, not {shown(raw)}")
    for key, neutral in NEUTRAL.items():
        if key in raw and raw[key] not in neutral:
            raise RequestError(400, f"{key}: {shown(raw[key])} is not supported; leave it out", key)
    known = {key: value for key, value in raw.items() if key not in {*NEUTRAL, *IGNORED}}
    problems = Problems(Document(Path("request"), known, {(): (Mark(""), Mark(""))}))
    keys = allowed_keys(ChatKeys)
    help = f"the keys are {', '.join(keys)}"
    checked = validate(ChatKeys, known, (), problems, hint=lambda key: did_you_mean(key, keys) or help)
    if checked.value is None:
        first = problems.items[0]
        text = f"{first.message}; {first.help}" if first.help else first.message
        raise RequestError(400, text, path_text(min(checked.failed, key=str, default=())) or None)
    return checked.value


# Replies


@dataclass
class Reply:
    """The frame of a request's answers."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Mapping[int, Answer], prompt_tokens: int) -> dict[str, Any]:
        """All answers, by the index of their choice."""
        choices = [self._choice(index, answers[index]) for index in sorted(answers)]
        return self._frame("chat.completion", choices) | {"usage": usage(prompt_tokens, list(answers.values()))}

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": answer.text}}
        ended = {"logprobs": _logprobs(answer.logprobs), "finish_reason": reason(answer)}
        return {"index": index, **said, **ended}

    # Streams

    def opening(self, index: int) -> str:
        """The first chunk of a choice."""
        return self._chunk(index, {"role": "assistant", "content": ""})

    def piece(self, piece: Piece) -> str:
        """A chunk with more of a choice."""
        return self._chunk(piece.number, {"content": piece.text}, _logprobs(piece.logprobs))

    def ending(self, index: int, answer: Answer) -> str:
        """The last chunk of a choice."""
        return self._chunk(index, {}, finish=reason(answer))

    def usage(self, prompt_tokens: int, answers: Sequence[Answer]) -> str:
        """The chunk with the number of tokens."""
        return event(self._frame("chat.completion.chunk", []) | {"usage": usage(prompt_tokens, answers)})

    def _chunk(self, index: int, said: Any, logprobs: Any = None, finish: str | None = None) -> str:
        choice = {"index": index, "delta": said, "logprobs": logprobs, "finish_reason": finish}
        return event(self._frame("chat.completion.chunk", [choice]))

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def _logprobs(tokens: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
    if not tokens:
        return None
    listed = [_token(t.text, t.logprob) | {"top_logprobs": [_token(*pair) for pair in t.top]} for t in tokens]
    return {"content": listed}


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": max(logprob, LEAST), "bytes": list(text.encode("utf-8", "replace"))}


def reason(answer: Answer) -> str:
    """Why an answer ended."""
    return "stop" if answer.ended else "length"


def usage(prompt_tokens: int, answers: Sequence[Answer]) -> dict[str, int]:
    written = sum(answer.written for answer in answers)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": written, "total_tokens": prompt_tokens + written}


def event(body: Mapping[str, Any]) -> str:
    """A chunk of a stream."""
    return f"data: {json.dumps(body)}\n\n"
