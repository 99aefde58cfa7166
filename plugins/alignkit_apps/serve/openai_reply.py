"""Answers in OpenAI's format: whole, or in the chunks of a stream."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignkit_apps.policies.streaming import Answer, Piece, TokenLogprobs

DONE = "data: [DONE]\n\n"
LEAST = -9999.0  # OpenAI's log-probability of what is impossible; JSON has no infinity


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
        return _event(self._frame("chat.completion.chunk", []) | {"usage": usage(prompt_tokens, answers)})

    def _chunk(self, index: int, said: Any, logprobs: Any = None, finish: str | None = None) -> str:
        choice = {"index": index, "delta": said, "logprobs": logprobs, "finish_reason": finish}
        return _event(self._frame("chat.completion.chunk", [choice]))

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def _logprobs(tokens: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
    if not tokens:
        return None
    listed = [_token(t.text, t.logprob) | {"top_logprobs": [_token(*pair) for pair in t.top]} for t in tokens]
    return {"content": listed}


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": max(logprob, LEAST), "bytes": list(text.encode("utf-8", "replace"))}


def failure(body: Mapping[str, Any]) -> str:
    """An error in the middle of a stream."""
    return _event(body)


def reason(answer: Answer) -> str:
    """Why an answer ended."""
    return "stop" if answer.ended else "length"


def usage(prompt_tokens: int, answers: Sequence[Answer]) -> dict[str, int]:
    written = sum(len(answer.tokens) for answer in answers)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": written, "total_tokens": prompt_tokens + written}


def _event(body: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"
