"""The server of `alignkit serve`: OpenAI's addresses, for clients on this machine or with a token."""

from __future__ import annotations

import asyncio
import hmac
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Received
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from alignkit.errors import AlignkitError, DataError, did_you_mean
from alignkit_apps.policies.policy import Exchange, Opened, Policy, TooLong
from alignkit_apps.policies.streaming import Answer, Piece
from alignkit_apps.policies.work import Busy, Event, Failed, Job, Read, Stopping, Work
from alignkit_apps.serve.collecting import KEPT, WHO, Collecting
from alignkit_apps.serve.openai import DONE, Reply, Request, RequestError, event, read_chat
from alignkit_apps.web.address import host_name, is_loopback
from alignkit_apps.web.guard import Refused, json_body
from alignkit_apps.web.hosting import hosted
from alignkit_plugins.people.labels import BadLabel

LOCAL = ("localhost", "127.0.0.1", "::1")
Keep = Callable[[Mapping[int, Answer]], Awaitable[bool]]
GONE = 499  # nginx's status for a client that does not wait for the answer; nobody receives it


def serve(
    opened: Opened,
    work: Work,
    listening: socket.socket,
    token: str | None,
    started: Callable[[], None],
    poll: Callable[[], None] = lambda: None,
    collecting: Collecting | None = None,
    names: Sequence[str] = (),
) -> None:
    """Answer requests in this thread until the work is stopped, or `poll` raises.

    started: called once clients can connect. collecting: keeps answers of users who agreed. names: by which clients may
    address it besides its own, through a proxy. Raises RunFailed if the server ends by itself.
    """
    listening.listen()
    started()
    host = listening.getsockname()[0]
    hosts = (*LOCAL, host, *names) if is_loopback(host) else None
    with hosted(application(opened.policies, work, hosts, token, collecting), listening) as look:

        def each() -> None:
            poll()
            look()

        work.run(each)


def application(
    policies: Mapping[str, Policy],
    work: Work,
    hosts: Sequence[str] | None,
    token: str | None,
    collecting: Collecting | None = None,
) -> ASGIApp:
    """The application. hosts: names by which clients may address it, against DNS rebinding; None: any.

    token: which clients must send as their API key; None: none.
    """
    endpoint = _Endpoint(policies, work, collecting)
    routes = [
        Route("/v1/models", endpoint.models),
        Route("/v1/models/{name:path}", endpoint.model),
        Route("/v1/chat/completions", endpoint.chat, methods=["POST"]),
        Route("/v1/consent", endpoint.consent, methods=["GET", "POST"]),
        Route("/v1/feedback", endpoint.feedback, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {
        RequestError: _refused,
        Refused: _no_json,
        HTTPException: _not_found,
        ClientDisconnect: _left,
    }
    return _Guard(Starlette(routes=routes, exception_handlers=handlers), hosts, token)


@dataclass(frozen=True)
class _Guard:
    """Refuses requests of pages of other hosts, and those without the token."""

    app: ASGIApp
    hosts: Sequence[str] | None
    token: str | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._fault(dict(scope["headers"])) if scope["type"] == "http" else None
        if error is None:
            await self.app(scope, receive, send)
        else:
            await JSONResponse(error.body(), error.status)(scope, receive, send)

    def _fault(self, headers: Mapping[bytes, bytes]) -> RequestError | None:
        host = headers.get(b"host", b"").decode("latin-1")
        if self.hosts is not None and host_name(host) not in self.hosts:
            known = ", ".join(self.hosts)
            return RequestError(403, f"this server does not answer for the host '{host}'; ask it as one of {known}")
        sent = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        if self.token is not None and not hmac.compare_digest(sent, self.token.encode()):
            return RequestError(401, "the API key is not the token of this server", code="invalid_api_key")
        return None


@dataclass
class _Listener:
    """What the model's thread says about a job, for one that waits in the server's thread."""

    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)

    def tell(self, told: Event) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.events.put_nowait, told)

    async def next(self) -> Event:
        """The next event. Raises RequestError if the job has failed."""
        told = await self.events.get()
        if isinstance(told, Failed):
            raise _request_error(told.error)
        return told


@dataclass(frozen=True)
class _Endpoint:
    policies: Mapping[str, Policy]
    work: Work
    collecting: Collecting | None

    async def models(self, received: Received) -> Response:
        """The names of all policies."""
        return JSONResponse({"object": "list", "data": [_described(policy) for policy in self.policies.values()]})

    async def model(self, received: Received) -> Response:
        """One policy."""
        return JSONResponse(_described(self._policy(received.path_params["name"])))

    async def consent(self, received: Received) -> Response:
        """What a user agrees to, and whether."""
        body = await json_body(received) if received.method == "POST" else None
        return await self._collected("consent", received, body)

    async def feedback(self, received: Received) -> Response:
        """A thumb for an answer."""
        return await self._collected("rate", received, await json_body(received))

    async def _collected(self, name: str, received: Received, body: bytes | None) -> Response:
        if self.collecting is None:
            raise RequestError(404, "nothing is kept here; `alignkit serve --collect FILE.feedback` keeps answers")
        try:
            return JSONResponse(await run_in_threadpool(getattr(self.collecting, name), received.headers, body))
        except (BadLabel, ValueError, RecursionError) as error:
            raise RequestError(400, str(error)) from None
        except AlignkitError as error:
            raise RequestError(503, str(error)) from None

    async def chat(self, received: Received) -> Response:
        """Answer a conversation."""
        asked = read_chat(await json_body(received))
        policy = self._policy(asked.model)
        listener = _Listener(asyncio.get_running_loop())
        sampling = replace(policy.sampling, **asked.sampling)
        job = Job(
            policy, asked.messages, sampling, asked.n, asked.seed, listener.tell, asked.stream, asked.logprobs
        )  # fmt: skip
        reply = Reply(policy.name)
        try:
            self.work.submit(job)
        except (Busy, Stopping) as error:
            raise _request_error(error) from None
        answered = asyncio.ensure_future(self._first(job, listener, reply, asked, received.headers))
        gone = asyncio.ensure_future(_disconnected(received))
        try:
            await asyncio.wait({answered, gone}, return_when=asyncio.FIRST_COMPLETED)
            if answered.done():
                return answered.result()
            raise ClientDisconnect
        except BaseException:
            job.cancel()
            raise
        finally:
            gone.cancel()
            answered.cancel()

    async def _first(
        self, job: Job, listener: _Listener, reply: Reply, asked: Request, sent: Mapping[str, str]
    ) -> Response:
        """The response: at its beginning if it is streamed, so that errors before that have a status of their own."""

        async def keep(answers: Mapping[int, Answer]) -> bool:
            texts = [answers[index].text for index in range(job.n)]
            exchange = Exchange(job.policy.word, job.messages, texts, job.sampling, job.seed)
            kept = self.collecting and await run_in_threadpool(self.collecting.keep, sent, reply.id, exchange)
            return bool(kept)

        read = await listener.next()
        assert isinstance(read, Read)  # it comes first
        if asked.stream:
            chunks = _stream(job, listener, reply, read, asked.usage, keep)
            agreed = bool(self.collecting and await run_in_threadpool(self.collecting.agreed, sent))
            headers = {"Cache-Control": "no-cache", **_kept(sent, agreed)}
            return StreamingResponse(chunks, media_type="text/event-stream", headers=headers)
        answers: dict[int, Answer] = {}
        async for piece in _heard(job, listener):
            if piece.answer is not None:
                answers[piece.number] = piece.answer
        whole = reply.whole(answers, read.prompt_tokens)
        return JSONResponse(whole, headers=_kept(sent, await keep(answers)))

    def _policy(self, name: str | None) -> Policy:
        if name is None and len(self.policies) == 1:
            return next(iter(self.policies.values()))
        if name is None:
            raise RequestError(400, f"'model' is missing; it is one of {', '.join(self.policies)}", "model")
        words = {policy.word: policy for policy in self.policies.values()}
        if (policy := self.policies.get(name) or words.get(name)) is not None:
            return policy
        help = did_you_mean(name, self.policies) or f"there is {', '.join(self.policies)}"
        raise RequestError(404, f"no model '{name:.200}'; {help}", "model", "model_not_found")


async def _heard(job: Job, listener: _Listener) -> AsyncIterator[Piece]:
    """The pieces of a job's answers, until all are complete."""
    waiting = job.n
    while waiting:
        piece = await listener.next()
        assert isinstance(piece, Piece)
        waiting -= piece.answer is not None
        yield piece


def _kept(sent: Mapping[str, str], kept: bool) -> dict[str, str]:
    """The header that says whether an answer is kept, for clients that say for whom they ask."""
    return {KEPT: "yes" if kept else "no"} if WHO in sent else {}


async def _stream(
    job: Job, listener: _Listener, reply: Reply, read: Read, usage: bool, keep: Keep
) -> AsyncIterator[str]:
    """The chunks of a response; the job is canceled if nobody receives them. keep: is given complete answers."""
    answers: dict[int, Answer] = {}
    try:
        for index in range(job.n):
            yield reply.opening(index)
        async for piece in _heard(job, listener):
            if piece.text or piece.logprobs:
                yield reply.piece(piece)
            if piece.answer is not None:
                answers[piece.number] = piece.answer
                yield reply.ending(piece.number, piece.answer)
        await keep(answers)
        if usage:
            yield reply.usage(read.prompt_tokens, list(answers.values()))
        yield DONE
    except RequestError as error:
        yield event(error.body())
    finally:
        job.cancel()


async def _disconnected(received: Received) -> None:
    """Return once the client has left."""
    while (await received.receive())["type"] != "http.disconnect":
        continue


def _described(policy: Policy) -> dict[str, Any]:
    return {"id": policy.name, "object": "model", "created": 0, "owned_by": "alignkit", "root": policy.word}


def _request_error(error: BaseException) -> RequestError:
    """An error of the work as the client sees it."""
    if isinstance(error, TooLong):
        return RequestError(413, str(error), code="context_length_exceeded")
    if isinstance(error, DataError):
        return RequestError(400, str(error))
    if isinstance(error, Busy):
        return RequestError(503, "too many requests are waiting; try again later", code="busy")
    return RequestError(503 if isinstance(error, Stopping) else 500, str(error))


async def _refused(received: Received, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {"Retry-After": "1"} if error.status == 503 else None
    return JSONResponse(error.body(), error.status, headers)


async def _no_json(received: Received, error: Exception) -> Response:
    assert isinstance(error, Refused)
    code = "request_too_large" if error.status == 413 else None
    return await _refused(received, RequestError(error.status, str(error), code=code))


async def _not_found(received: Received, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = f"{error.detail}: {received.method} {received.url.path}; there is GET /v1/models, POST /v1/chat/completions"
    wrong = RequestError(error.status_code, text)
    return JSONResponse(wrong.body(), error.status_code, error.headers)


async def _left(received: Received, error: Exception) -> Response:
    return Response(status_code=GONE)
