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
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from torch import Tensor

from alignkit.contract.options import Field
from alignkit.data.files import parse
from alignkit.errors import AlignkitError, BadRow, DataError, OutOfResource, did_you_mean
from alignkit.models.generate import StageEngine
from alignkit.tokens.encoder import Ids
from alignkit_plugins.formats.turns import read_message
from alignkit_plugins.people.collection import Collection
from alignkit_plugins.people.labels import TERMS, BadLabel, StrictModel, check_annotator, read
from alignkit_plugins.servers.page import STYLE
from alignkit_plugins.servers.server import Address, Guard, Refused, error_body, json_body
from alignkit_plugins.serving.policy import Answer, Policy, bytes_of

# What a client says of itself, or hints at: accepted with any value, as docs/policies.md lists.
IGNORED = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "reasoning_effort",
    "verbosity",
}
# What other keys may be, if they are not empty, 0 or false: they ask for nothing
NOTHING = ("none", "auto", {"type": "text"}, ["text"])

Tokens = list[dict[str, Any]]  # tokens, with their log-probabilities
Stop = Annotated[str, Field(min_length=1)]


class ChatRequest(StrictModel):
    """The keys of POST /v1/chat/completions; docs/policies.md lists them."""

    model: str | None = None  # may be left out if there is only one
    n: Literal[1] | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)  # the same; the lower one counts
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    stop: Stop | list[Stop] | None = None
    seed: int = Field(default_factory=lambda: secrets.randbits(63), ge=-(2**63), lt=2**64)
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None  # `include_usage` adds the number of tokens
    logprobs: bool | None = None
    top_logprobs: int = Field(0, ge=0, le=20)
    messages: list[Any] = Field(min_length=1)

    def sampling(self) -> dict[str, Any]:
        """Return what the request says of sampling, by the names of `Sampling`."""
        keys = self.model_dump(include={"temperature", "top_p", "top_k"}, exclude_none=True)
        if limits := list(filter(None, (self.max_tokens, self.max_completion_tokens))):
            keys["max_new_tokens"] = min(limits)
        if self.stop is not None:
            keys["stop"] = [self.stop] if isinstance(self.stop, str) else self.stop
        return keys


class Consent(StrictModel):
    """What a user says to the terms; a yes repeats them."""

    granted: bool
    terms: str = ""


class Thumb(StrictModel):
    """What a user thinks of a reply, by its id."""

    id: str
    good: bool


def read_chat(body: bytes) -> ChatRequest:
    """Return a request with its messages read. Raises BadLabel for a key or a value that is wrong,
    and BadRow for a message.
    """
    raw = _json(body)
    if isinstance(raw, dict):
        raw = {key: raw[key] for key in raw if key not in IGNORED and raw[key] is not None}
        known = ChatRequest.model_fields
        for key in [key for key in raw if key not in known]:
            value, near = raw.pop(key), did_you_mean(key, known)
            # `temprature: 0` asks for something
            if (value and value not in NOTHING) or (near and type(value) in (int, float)):
                help = near or "leave it out"
                raise BadLabel(f"this request: {key}: not supported; {help}")
    request = read(ChatRequest, raw, "this request")
    request.logprobs = request.logprobs or request.top_logprobs > 0
    for place, turn in enumerate(request.messages):
        request.messages[place] = read_message(turn, f"this request: messages[{place}]")
    return request


# The application

PAGE = Path(__file__).parent / "page.html"
CLOSED = ("default-src", "base-uri", "form-action", "frame-ancestors")  # to pages
WHO = "x-alignkit-annotator"  # the header that says for whom a client asks


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
        kinds = Refused, HTTPException, AlignkitError, BadRow, Exception
        guard = Middleware(Guard, address=address, token=token)
        handlers: dict[Any, Any] = {**dict.fromkeys(kinds, _failed), 404: _no_address}
        return Starlette(routes=routes, exception_handlers=handlers, middleware=[guard])

    async def page(self, request: Request) -> Response:
        """The page, whose own script and style are the only ones that a browser runs."""
        text = PAGE.read_text("utf-8").replace("<style>", f"<style>{STYLE}", 1)
        policy = [f"{name} 'none'" for name in CLOSED] + ["connect-src 'self'"]
        for tag, content in re.findall(r"<(script|style)>(.*?)</\1>", text, re.DOTALL):
            digest = hashlib.sha256(content.encode()).digest()
            policy.append(f"{tag}-src 'sha256-{base64.b64encode(digest).decode()}'")
        return HTMLResponse(text, headers={"content-security-policy": "; ".join(policy)})

    async def models(self, request: Request) -> Response:
        """The names of all policies."""
        facts = {"object": "model", "created": 0, "owned_by": "alignkit"}
        data = [{"id": name, **facts} for name in self.policies]
        return JSONResponse({"object": "list", "data": data})

    # What is kept

    async def consent(self, request: Request) -> Response:
        """What a user is asked, and what the user said last."""
        collection, who = self._kept_for(request)
        if request.method == "POST":
            consent = read(Consent, _json(await json_body(request)))
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
        thumb = read(Thumb, _json(await json_body(request)))
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
            text = "nothing is kept here; `alignkit serve --collect FILE.feedback` keeps answers"
            raise Refused(404, text)
        who = request.headers.get(WHO, "")
        if not who:
            raise BadLabel("say for whom, in the header X-Alignkit-Annotator")
        check_annotator(who)
        return self.collection, who

    def _keep(
        self, who: str, reply: str, policy: Policy, chat: ChatRequest, answer: Answer
    ) -> None:
        """Keep an answer if its user agreed. reply: its id."""
        if self.collection is None:
            return
        temperature = chat.sampling().get("temperature", policy.sampling.temperature)
        meta = {"seed": chat.seed, "temperature": temperature}
        if item := self.collection.keep(who, policy.word, chat.messages, answer.text, meta):
            self.kept[reply] = who, item

    # Answers

    async def chat(self, request: Request) -> Response:
        """Answer a conversation, at once or in a stream."""
        chat, loop = read_chat(await json_body(request)), asyncio.get_running_loop()
        policy = self._policy(chat.model)
        if chat.logprobs and type(policy.role.loaded.engine) is not StageEngine:
            raise BadLabel("this request: logprobs: only alignkit's own decoder tells them")
        who, id = request.headers.get(WHO, ""), f"chatcmpl-{uuid.uuid4().hex}"
        prompt = await loop.run_in_executor(self.model, policy.prompt, chat.messages)
        if chat.stream:
            chunks = self._stream(policy, chat, prompt, who, id)
            return StreamingResponse(chunks, media_type="text/event-stream")
        tokens = Tokens()
        writing = loop.run_in_executor(
            self.model, self._answer, policy, chat, prompt, lambda _, more: tokens.extend(more)
        )
        answer = await writing
        await run_in_threadpool(self._keep, who, id, policy, chat, answer)
        message = {"role": "assistant", "content": answer.text}
        choice = {"message": message, "finish_reason": _reason(answer)}
        body = _body(id, policy, "chat.completion", choice, tokens)
        return JSONResponse({**body, "usage": _usage(prompt, answer)})

    def _answer(
        self,
        policy: Policy,
        chat: ChatRequest,
        prompt: Ids,
        on_text: Callable[[str, Tokens], None],
        gone: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """The answer, which the model's thread writes until the client is gone or the server
        stops. on_text: is given its text in pieces, each with its tokens, if the client wants them.
        """
        sampling = policy.sampling.model_copy(update=chat.sampling())
        tokens, tokenizer = Tokens(), policy.role.encoder.tokenizer

        def on_token(token: int, logprobs: Tensor) -> None:
            ids = [token, *logprobs.topk(chat.top_logprobs).indices.tolist()]
            own, *top = [_token(bytes_of(tokenizer, id), float(logprobs[id])) for id in ids]
            tokens.append({**own, "top_logprobs": top})

        def hear(text: str) -> None:
            on_text(text, tokens.copy())
            tokens.clear()

        def wanted() -> bool:
            return not (gone() or self.stopping())

        tell = on_token if chat.logprobs else None
        answer = policy.answer(prompt, sampling, chat.seed, hear, wanted, tell)
        if self.stopping():
            raise Refused(503, "the server is stopping")
        return answer

    async def _stream(
        self, policy: Policy, chat: ChatRequest, prompt: Ids, who: str, id: str
    ) -> AsyncIterator[str]:
        """The chunks of an answer, which ends if nobody receives them."""
        loop, gone = asyncio.get_running_loop(), threading.Event()
        pieces = asyncio.Queue[tuple[str, Tokens] | None]()  # None: the answer is complete

        def on_text(*piece: Any) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def chunk(delta: Mapping[str, str], reason: str | None = None, tokens: Any = ()) -> str:
            choice = {"delta": delta, "finish_reason": reason}
            return _event(_body(id, policy, "chat.completion.chunk", choice, tokens))

        yield chunk({"role": "assistant", "content": ""})
        writing = loop.run_in_executor(
            self.model, self._answer, policy, chat, prompt, on_text, gone.is_set
        )
        writing.add_done_callback(lambda done: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield chunk({"content": piece[0]}, tokens=piece[1])
            answer = await writing
            yield chunk({}, _reason(answer))
            await run_in_threadpool(self._keep, who, id, policy, chat, answer)
            if (chat.stream_options or {}).get("include_usage"):
                body = _body(id, policy, "chat.completion.chunk")
                yield _event({**body, "usage": _usage(prompt, answer)})
            yield "data: [DONE]\n\n"
        except Exception as error:  # whatever it is, whoever asked hears of it
            yield _event(_error(error)[1])
        finally:
            gone.set()

    def _policy(self, name: str | None) -> Policy:
        """The policy of a name, or the only one."""
        if name is None and len(self.policies) == 1:
            return next(iter(self.policies.values()))
        policy = self.policies.get(name or "")
        if policy is None:
            raise Refused(404, f"no 'model' {name!s:.200}; there is {', '.join(self.policies)}")
        return policy


# Parts of replies


def _body(
    id: str, policy: Policy, kind: str, choice: Any = None, tokens: Any = ()
) -> dict[str, Any]:
    """A reply or a chunk of one. choice: its only one; None: none. tokens: those of its text, if they are
    wanted.
    """
    logprobs = {"content": tokens} if tokens else None
    choices = [] if choice is None else [{"index": 0, "logprobs": logprobs, **choice}]
    head = {"id": id, "object": kind, "created": int(time.time()), "model": policy.name}
    return {**head, "choices": choices}


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    text = token.decode(errors="replace")
    return {"token": text, "logprob": logprob, "bytes": list(token)}


def _reason(answer: Answer) -> str:
    return "length" if answer.response.truncated else "stop"


def _usage(prompt: Ids, answer: Answer) -> dict[str, int]:
    read, written = len(prompt), len(answer.response.tokens or ())
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _event(body: Mapping[str, Any]) -> str:
    """A chunk of a stream."""
    return f"data: {json.dumps(body)}\n\n"


def _json(body: bytes) -> Any:
    """The JSON of a request."""
    try:
        found = parse(body)
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadLabel("this request: a text has half of a surrogate pair") from None
    except BadRow as error:
        raise BadLabel(f"this request: {str(error).partition(';')[0]}") from None
    return found


def _error(error: Exception) -> tuple[int, dict[str, Any]]:
    """The status and the JSON of an error."""
    status, text = 500, str(error) or repr(error)
    if isinstance(error, Refused):
        status = error.status
    elif isinstance(error, HTTPException):
        status, text = error.status_code, error.detail
    elif isinstance(error, DataError | BadLabel | BadRow):
        status = 400
    elif isinstance(error, OutOfResource):
        status = 503
    return status, error_body(status, text)


async def _failed(request: Request, error: Exception) -> Response:
    status, body = _error(error)
    return JSONResponse(body, status)


async def _no_address(request: Request, error: Exception) -> Response:
    """No route has the path, or it is Refused, which has a handler of its own."""
    known = ", ".join(route.path for route in request.app.routes)
    return await _failed(
        request, Refused(404, f"no address {request.url.path:.200}; there is {known}")
    )
