"""The application of `alignkit serve`: OpenAI's addresses, and a page that talks to them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as Received
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from alignkit.errors import AlignkitError, DataError, did_you_mean
from alignkit_plugins.people.collection import Exchange
from alignkit_plugins.people.labels import BadLabel
from alignkit_plugins.people.server import Address, Guard, Refused, json_body
from alignkit_plugins.policies.collecting import KEPT, WHO, Collecting
from alignkit_plugins.policies.openai_api import (
    DONE,
    Reply,
    Request,
    RequestError,
    event,
    read_chat,
)
from alignkit_plugins.policies.policy import Policy, TooLong
from alignkit_plugins.policies.streaming import Answer

PAGE = Path(__file__).parent / "page.html"
MOST_WAITING = 64  # requests
GONE = 499  # nginx's status for a client that does not wait for the answer; nobody receives it


@dataclass
class Endpoint:
    """Answers requests with policies, one after the other. stopping: whether the server is about to
    end.
    """

    policies: Mapping[str, Policy]
    collecting: Collecting | None = None
    stopping: Callable[[], bool] = lambda: False
    # The only thread that uses the models
    model: Executor = field(default_factory=lambda: ThreadPoolExecutor(1))
    waiting: int = 0

    def application(self, address: Address, token: str | None) -> Starlette:
        """The application. token: which clients must send as their API key; None: none."""
        routes = [
            Route("/", self.page),
            Route("/v1/models", self.models),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/consent", self.consent, methods=["GET", "POST"]),
            Route("/v1/feedback", self.feedback, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {Refused: _refused, HTTPException: _not_found}
        guard = Middleware(Guard, address=address, token=token)
        return Starlette(routes=routes, exception_handlers=handlers, middleware=[guard])

    async def page(self, received: Received) -> Response:
        """The page, whose own script and style are the only ones that a browser runs."""
        text = PAGE.read_text(encoding="utf-8")
        closed = (
            "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
            "connect-src 'self'"
        )
        return HTMLResponse(text, headers={"content-security-policy": f"{closed}; {_hashes(text)}"})

    async def models(self, received: Received) -> Response:
        """The names of all policies."""
        known = {"object": "model", "created": 0, "owned_by": "alignkit"}
        data = [
            {"id": policy.name, **known, "root": policy.word} for policy in self.policies.values()
        ]
        return JSONResponse({"object": "list", "data": data})

    async def consent(self, received: Received) -> Response:
        """What a user agrees to, and whether."""
        body = await json_body(received) if received.method == "POST" else None
        return await self._collected("consent", received, body)

    async def feedback(self, received: Received) -> Response:
        """A thumb for an answer."""
        return await self._collected("rate", received, await json_body(received))

    async def _collected(self, name: str, received: Received, body: bytes | None) -> Response:
        if self.collecting is None:
            raise RequestError(
                404, "nothing is kept here; `alignkit serve --collect FILE.feedback` keeps answers"
            )
        try:
            return JSONResponse(
                await run_in_threadpool(getattr(self.collecting, name), received.headers, body)
            )
        except (BadLabel, ValueError, RecursionError) as error:
            raise RequestError(400, str(error)) from None
        except AlignkitError as error:
            raise RequestError(503, str(error)) from None

    async def chat(self, received: Received) -> Response:
        """Answer a conversation, at once or in a stream."""
        asked = read_chat(await json_body(received))
        policy = self._policy(asked.model)
        if self.waiting >= MOST_WAITING:
            raise RequestError(503, "too many requests are waiting; try again later", code="busy")
        reply, events = Reply(policy.name), self._events(policy, asked)
        reply.prompt_tokens = await anext(events)
        if asked.stream:
            chunks = self._stream(events, reply, asked, policy, received)
            agreed = bool(
                self.collecting
                and await run_in_threadpool(self.collecting.agreed, received.headers)
            )
            return StreamingResponse(
                chunks, media_type="text/event-stream", headers=_kept(received, agreed)
            )
        async with aclosing(events):
            async for piece in events:
                if await received.is_disconnected():
                    break
                if isinstance(piece, Answer):
                    kept = await self._keep(received, reply, policy, asked, piece)
                    return JSONResponse(reply.whole(piece), headers=_kept(received, kept))
        return Response(status_code=GONE)

    async def _events(self, policy: Policy, asked: Request) -> AsyncGenerator[Any]:
        """The number of tokens of the prompt, pieces of the answer, and all of it, which the
        model's thread writes.

        Raises RequestError. Once it is closed, the answer is written no further.
        """
        loop, told, gone = asyncio.get_running_loop(), asyncio.Queue[Any](), threading.Event()

        def tell(what: Any) -> None:
            if not gone.is_set():
                loop.call_soon_threadsafe(told.put_nowait, what)

        def wanted() -> bool:
            return not (gone.is_set() or self.stopping())

        def write() -> None:
            if gone.is_set():
                return
            try:
                prompt = policy.prompt(asked.messages)
                tell(len(prompt))
                answer = policy.answer(
                    prompt,
                    policy.sampling.model_copy(update=asked.sampling),
                    asked.seed,
                    tell,
                    wanted,
                )
                tell(answer if wanted() else RequestError(503, "the server is stopping"))
            except (
                Exception
            ) as error:  # whatever it is, it must not end the server; whoever asked hears of it
                tell(_request_error(error))

        self.waiting += 1
        try:
            loop.run_in_executor(self.model, write)
            while True:
                event = await told.get()
                if isinstance(event, RequestError):
                    raise event
                yield event
        finally:
            self.waiting -= 1
            gone.set()

    async def _stream(
        self, events: Any, reply: Reply, asked: Request, policy: Policy, received: Received
    ) -> AsyncIterator[str]:
        """The chunks of a response; the answer ends if nobody receives them."""
        async with aclosing(events):
            yield reply.opening()
            try:
                async for piece in events:
                    if isinstance(piece, str):
                        yield reply.piece(piece)
                        continue
                    yield reply.ending(piece)
                    await self._keep(received, reply, policy, asked, piece)
                    if asked.usage:
                        yield reply.usage(piece)
                    yield DONE
                    return
            except RequestError as error:
                yield event(error.body())

    async def _keep(
        self, received: Received, reply: Reply, policy: Policy, asked: Request, answer: Answer
    ) -> bool:
        if self.collecting is None:
            return False
        temperature = asked.sampling.get("temperature", policy.sampling.temperature)
        exchange = Exchange(policy.word, asked.messages, answer.text, temperature, asked.seed)
        return await run_in_threadpool(self.collecting.keep, received.headers, reply.id, exchange)

    def _policy(self, name: str | None) -> Policy:
        if name is None and len(self.policies) == 1:
            return next(iter(self.policies.values()))
        if name is None:
            raise RequestError(
                400, f"'model' is missing; it is one of {', '.join(self.policies)}", "model"
            )
        if name in self.policies:
            return self.policies[name]
        help = did_you_mean(name, self.policies) or f"there is {', '.join(self.policies)}"
        raise RequestError(404, f"no model '{name:.200}'; {help}", "model", "model_not_found")


def _hashes(page: str) -> str:
    """The directives that allow the script and the style of a page, by their digests."""
    found = []
    for tag in ("script", "style"):
        match = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert match is not None
        digest = base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode()
        found.append(f"{tag}-src 'sha256-{digest}'")
    return "; ".join(found)


def _kept(received: Received, kept: bool) -> dict[str, str]:
    """The header that says whether an answer is kept, for clients that say for whom they ask."""
    return {KEPT: "yes" if kept else "no"} if WHO in received.headers else {}


def _request_error(error: Exception) -> RequestError:
    """An error of the work as the client sees it."""
    if isinstance(error, TooLong):
        return RequestError(413, str(error), code="context_length_exceeded")
    return RequestError(400 if isinstance(error, DataError) else 500, str(error) or repr(error))


async def _refused(received: Received, error: Refused) -> Response:
    if not isinstance(error, RequestError):
        error = RequestError(
            error.status, str(error), code="request_too_large" if error.status == 413 else None
        )
    headers = {"Retry-After": "1"} if error.status == 503 else None
    return JSONResponse(error.body(), error.status, headers)


async def _not_found(received: Received, error: HTTPException) -> Response:
    text = (
        f"{error.detail}: {received.method} {received.url.path}; there is GET /v1/models, POST "
        "/v1/chat/completions"
    )
    return JSONResponse(
        RequestError(error.status_code, text).body(), error.status_code, error.headers
    )
