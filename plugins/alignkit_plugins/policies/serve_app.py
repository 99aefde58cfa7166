"""The application of `alignkit serve`: OpenAI's format and addresses, a page that talks to them,
and what users let it keep.

A key of a request that would be ignored is an error.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import secrets
import sys
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from alignkit.errors import AlignkitError, BadRow, DataError, OutOfResource, did_you_mean
from alignkit.io.text import printable
from alignkit.options import Options
from alignkit.recipe.mistakes import path_text, shown, validated
from alignkit.sampling import Sampling
from alignkit_plugins.formats.columns import read_message
from alignkit_plugins.people.collection import Collection, Exchange
from alignkit_plugins.people.labels import TERMS, BadLabel, StrictModel, check_annotator, read
from alignkit_plugins.people.server import Address, Guard, Refused, json_body
from alignkit_plugins.policies.policy import Answer, Policy, TooLong

# Values of keys that ask for nothing, besides null. Any other one is refused: it would be ignored.
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
    """A request that cannot be answered. status: of HTTP. param: the key that is wrong. code: for
    programs.
    """

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
    """Return a request, with a seed and its messages read. Raises RequestError for a key or a value
    that is wrong.
    """
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
        read, written = self.prompt_tokens, len(answer.response.tokens or ())
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _reason(answer: Answer) -> str:
    return "length" if answer.response.truncated else "stop"


def event(body: Mapping[str, Any]) -> str:
    """Return a chunk of a stream."""
    return f"data: {json.dumps(body)}\n\n"


# The application

PAGE = Path(__file__).parent / "page.html"
MOST_WAITING = 64  # requests
MOST_KEPT = 10_000  # replies that thumbs can be about
CLOSED = ("default-src", "base-uri", "form-action", "frame-ancestors")  # to pages
WHO, KEPT = "x-alignkit-annotator", "x-alignkit-kept"  # headers of requests and of replies
GONE = 499  # nginx's status for a client that does not wait for the answer; nobody receives it


Body = TypeVar("Body", bound=StrictModel)


class Consent(StrictModel):
    """What a user says to the terms; a yes repeats them."""

    granted: bool
    terms: str = ""


class Thumb(StrictModel):
    """What a user thinks of a reply, by its id."""

    id: str
    good: bool


@dataclass
class Endpoint:
    """Answers requests with policies, one after the other.

    policies: by their names. collection: keeps answers and thumbs of users who agreed; the client
    says for whom it asks, and is believed. stopping: whether the server is about to end.
    """

    policies: Mapping[str, Policy]
    collection: Collection | None = None
    stopping: Callable[[], bool] = lambda: False
    # The only thread that uses the models.
    model: Executor = field(default_factory=lambda: ThreadPoolExecutor(1))
    waiting: int = 0
    # Id of a reply -> annotator and item.
    kept: dict[str, tuple[str, str]] = field(default_factory=dict)

    def application(self, address: Address, token: str | None) -> Starlette:
        """Return the application. token: which clients must send as their API key; None: none."""
        routes = [
            Route("/", self.page),
            Route("/v1/models", self.models),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/consent", self.consent, methods=["GET", "POST"]),
            Route("/v1/feedback", self.feedback, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = dict.fromkeys((Refused, HTTPException, AlignkitError), _failed)
        guard = Middleware(Guard, address=address, token=token)
        return Starlette(routes=routes, exception_handlers=handlers, middleware=[guard])

    async def page(self, request: Request) -> Response:
        """The page, whose own script and style are the only ones that a browser runs."""
        text = PAGE.read_text(encoding="utf-8")
        policy = [f"{name} 'none'" for name in CLOSED] + ["connect-src 'self'"]
        for tag, content in re.findall(r"<(script|style)>(.*?)</\1>", text, re.DOTALL):
            digest = hashlib.sha256(content.encode()).digest()
            policy.append(f"{tag}-src 'sha256-{base64.b64encode(digest).decode()}'")
        return HTMLResponse(text, headers={"content-security-policy": "; ".join(policy)})

    async def models(self, request: Request) -> Response:
        """The names of all policies."""
        facts = {"object": "model", "created": 0, "owned_by": "alignkit"}
        data = [
            {"id": policy.name, **facts, "root": policy.word} for policy in self.policies.values()
        ]
        return JSONResponse({"object": "list", "data": data})

    # What is kept

    async def consent(self, request: Request) -> Response:
        """What a user is asked, and what the user said last."""
        collection, who = self._kept_for(request)
        if request.method == "POST":
            consent = _body(Consent, await json_body(request))
            if consent.granted and consent.terms != TERMS:
                raise BadLabel(
                    "a yes must repeat the 'terms' of GET /v1/consent, which the user has read"
                )
            await run_in_threadpool(collection.agree, who, consent.granted)
        agreed = await run_in_threadpool(collection.agreed, who)
        facts = {"file": collection.path.name, "license": collection.license}
        return JSONResponse({"annotator": who, "agreed": agreed, "terms": TERMS, **facts})

    async def feedback(self, request: Request) -> Response:
        """Store a thumb for an answer that was kept; a later one replaces it."""
        collection, who = self._kept_for(request)
        thumb = _body(Thumb, await json_body(request))
        owner, item = self.kept.get(thumb.id, ("", ""))
        if owner != who:
            raise BadLabel(f"no answer {thumb.id:.60} was kept for {who} since the server started")
        await run_in_threadpool(collection.rate, who, item, thumb.good)
        return JSONResponse({"id": thumb.id, "good": thumb.good})

    def _kept_for(self, request: Request) -> tuple[Collection, str]:
        """The store, and for whom a client asks. Raises if nothing is kept, or the client does not
        say.
        """
        if self.collection is None:
            raise RequestError(
                404, "nothing is kept here; `alignkit serve --collect FILE.feedback` keeps answers"
            )
        who = request.headers.get(WHO, "")
        if not who:
            raise BadLabel("say for whom, in the header X-Alignkit-Annotator")
        check_annotator(who)
        return self.collection, who

    def _keep(
        self, request: Request, reply: Reply | None = None, exchange: Exchange | None = None
    ) -> bool:
        """Whether the user of a request agreed; then keep its answer, once there is one."""
        if self.collection is None or WHO not in request.headers:
            return False
        try:
            collection, who = self._kept_for(request)
            if not collection.agreed(who):
                return False
            if reply is not None and exchange is not None:
                while len(self.kept) >= MOST_KEPT:
                    del self.kept[next(iter(self.kept))]
                self.kept[reply.id] = who, collection.keep(who, exchange)
        except AlignkitError as error:  # a store that fails is no reason to answer nobody
            print(printable(f"warning: an answer is not kept: {error}"), file=sys.stderr)
            return False
        return True

    # Answers

    async def chat(self, request: Request) -> Response:
        """Answer a conversation, at once or in a stream."""
        asked = read_chat(await json_body(request))
        policy = self._policy(asked.model)
        if self.waiting >= MOST_WAITING:
            raise RequestError(503, "too many requests are waiting; try again later", code="busy")
        sampling = policy.sampling.model_copy(update=asked.sampling())
        reply, pieces = Reply(policy.name), self._pieces(policy, asked, sampling)
        reply.prompt_tokens = await anext(pieces)

        async def keep(answer: Answer) -> bool:
            exchange = Exchange(
                policy.word, asked.messages, answer.text, sampling.temperature, asked.seed or 0
            )
            return await run_in_threadpool(self._keep, request, reply, exchange)

        if asked.stream:
            headers = _kept(request, await run_in_threadpool(self._keep, request))
            chunks = _stream(pieces, reply, asked, keep)
            return StreamingResponse(chunks, media_type="text/event-stream", headers=headers)
        async with aclosing(pieces):
            async for piece in pieces:
                if await request.is_disconnected():
                    break
                if isinstance(piece, Answer):
                    return JSONResponse(
                        reply.whole(piece), headers=_kept(request, await keep(piece))
                    )
        return Response(status_code=GONE)

    async def _pieces(
        self, policy: Policy, asked: ChatRequest, sampling: Sampling
    ) -> AsyncGenerator[Any]:
        """The number of tokens of the prompt, pieces of the answer, and all of it, which the
        model's thread writes.

        Raises RequestError. Once it is closed, the answer is written no further.
        """
        loop, pieces, gone = asyncio.get_running_loop(), asyncio.Queue[Any](), threading.Event()

        def tell(piece: Any) -> None:
            if not gone.is_set():
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def wanted() -> bool:
            return not (gone.is_set() or self.stopping())

        def write() -> None:
            if gone.is_set():
                return
            try:
                prompt = policy.prompt(asked.messages)
                tell(len(prompt))
                answer = policy.answer(prompt, sampling, asked.seed or 0, tell, wanted)
                tell(answer if wanted() else RequestError(503, "the server is stopping"))
            except (
                Exception
            ) as error:  # whatever it is, it must not end the server; whoever asked hears of it
                tell(_request_error(error))

        self.waiting += 1
        try:
            loop.run_in_executor(self.model, write)
            while True:
                piece = await pieces.get()
                if isinstance(piece, RequestError):
                    raise piece
                yield piece
        finally:
            self.waiting -= 1
            gone.set()

    def _policy(self, name: str | None) -> Policy:
        """The policy of a name, or the only one."""
        if name is None and len(self.policies) == 1:
            return next(iter(self.policies.values()))
        names = ", ".join(self.policies)
        if name is None:
            raise RequestError(400, f"'model' is missing; it is one of {names}", "model")
        if name not in self.policies:
            help = did_you_mean(name, self.policies) or f"there is {names}"
            raise RequestError(404, f"no model '{name:.200}'; {help}", "model", "model_not_found")
        return self.policies[name]


async def _stream(
    pieces: AsyncGenerator[Any],
    reply: Reply,
    asked: ChatRequest,
    keep: Callable[[Answer], Awaitable[bool]],
) -> AsyncIterator[str]:
    """The chunks of a response; the answer ends if nobody receives them."""
    async with aclosing(pieces):
        yield reply.chunk(role="assistant", content="")
        try:
            async for piece in pieces:
                if isinstance(piece, str):
                    yield reply.chunk(content=piece)
                    continue
                yield reply.chunk(piece)
                await keep(piece)
                if asked.stream_options is not None and asked.stream_options.include_usage:
                    yield reply.usage(piece)
                yield "data: [DONE]\n\n"
                return
        except RequestError as error:
            yield event(error.body())


def _kept(request: Request, kept: bool) -> dict[str, str]:
    """The header that says whether an answer is kept, for clients that say for whom they ask."""
    return {KEPT: "yes" if kept else "no"} if WHO in request.headers else {}


def _body(model: type[Body], body: bytes) -> Body:
    """The JSON of a request by its model."""
    try:
        return read(model, json.loads(body))
    except (ValueError, RecursionError) as error:
        raise BadLabel(str(error)) from None


def _request_error(error: Exception) -> RequestError:
    """An error as the client sees it."""
    if isinstance(error, RequestError):
        return error
    text = str(error) or repr(error)
    if isinstance(error, TooLong):
        return RequestError(413, text, code="context_length_exceeded")
    if isinstance(error, Refused):
        return RequestError(
            error.status, text, code="request_too_large" if error.status == 413 else None
        )
    if isinstance(error, DataError | BadLabel):
        return RequestError(400, text)
    return RequestError(503 if isinstance(error, OutOfResource) else 500, text)


async def _failed(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        text = (
            f"{error.detail}: {request.method} {request.url.path}; POST /v1/chat/completions "
            "answers"
        )
        return JSONResponse(
            RequestError(error.status_code, text).body(), error.status_code, error.headers
        )
    refused = _request_error(error)
    headers = {"Retry-After": "1"} if refused.status == 503 else None
    return JSONResponse(refused.body(), refused.status, headers)
