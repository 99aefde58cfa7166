"""JSON over HTTP for judges and rewards on a server: bounded, retried, with every reply stored on
disk.

    # `server` is an option of the type `RemoteOptions`.
    remote = Remote("my_reward", self.options.server, "score", context.cache, read)
    replies = remote.ask([{"text": ...}, ...])  # one Reply per request body, in order

`read` turns the bytes of a reply into a JSON value, which is stored, or raises `Malformed`.
Failures that may be temporary (no connection, time-outs, 408, 429, 5xx) are retried, by the client
of OpenAI's package. Other statuses, and a server that stays unavailable, end the run with a
`RemoteError`. Replies received by then are stored and not requested again.

Design: docs/architecture.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol
from urllib.parse import urlsplit

from pydantic import ConfigDict, field_validator

from alignkit.contract.options import Field, Options
from alignkit.contract.reward import Progress, no_progress
from alignkit.errors import AlignkitError, RemoteError, RunFailed
from alignkit.io.text import HIDDEN, redacted
from alignkit.runs.signals import should_stop

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["Malformed", "Remote", "RemoteOptions", "Reply", "key_of", "stored_replies_only"]

SHORTEST_KEY = 6  # characters: a shorter one, such as `none`, is a word of replies
STOP_SECONDS = 0.2  # between looks at whether the run should stop
LAST_SECONDS = 3.0  # for the last replies after a failure or a request to stop
MOST_QUOTED = 200  # characters of a server's words in a message
RESUME = "the replies received are stored; repeat the command to resume"
LATE = (
    "raise 'timeout_seconds', or lower 'concurrency' to what the server answers at once: the others"
    " wait there"
)
OF_A_ROW = (400, 413, 422)  # statuses that refuse a request, and not all that follow
_TABLE = "create table if not exists replies (key text primary key, value text)"


# Options


def checked_address(url: str) -> str:
    """A server's base address without a slash at the end.

    Raises ValueError for one that must not be asked.
    """
    if " " in url or not url.isprintable():
        raise ValueError("must not contain spaces, line breaks or control characters")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must begin with http:// or https:// and name a host")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "must not contain a user, a query or a fragment; put the key's environment variable "
            "into api_key_env"
        )
    if parts.port == 0:  # raises ValueError for one above 65535
        raise ValueError("has a port that is not a number from 1 to 65535")
    return url.rstrip("/")


class RemoteOptions(Options):
    """The mapping `server:` of everything that sends requests to one."""

    # Errors must not repeat a key that was pasted into the wrong place.
    model_config = ConfigDict(hide_input_in_errors=True)

    changes_no_result: ClassVar[frozenset[str]] = frozenset(
        {"api_key_env", "concurrency", "timeout_seconds", "max_retries"}
    )

    base_url: str = Field(
        description="base address of the service, such as http://localhost:8000/v1"
    )
    api_key_env: str = Field("", "environment variable that holds the key (not the key itself)")
    concurrency: int = Field(8, "maximum concurrent requests", ge=1, le=256)
    timeout_seconds: float = Field(
        60.0, "seconds to wait for a connection, and for the next bytes of a reply", gt=0
    )
    max_retries: int = Field(5, "retries after a failure that may be temporary", ge=0)
    request: dict[str, Any] = Field({}, "additional fields of the request; null removes a field")

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, url: str) -> str:
        return checked_address(url)

    @field_validator("api_key_env")
    @classmethod
    def _variable_name(cls, name: str) -> str:
        if name and (redacted(name) != name or not (name.isascii() and name.isidentifier())):
            raise ValueError("must be the name of an environment variable, not the key itself")
        return name

    def body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON of a request, with the recipe's own fields."""
        fields = {**body, **self.request}
        return {name: value for name, value in fields.items() if value is not None}


class WithKey(Protocol):
    """Options with the name of a key's environment variable."""

    @property
    def api_key_env(self) -> str: ...


def key_of(name: str, options: WithKey) -> str:
    """The key, from the environment. Raises RunFailed if it is missing; a `check` may call it.

    name: of the judge or reward, for the message.
    """
    variable = options.api_key_env
    if not variable or not asking_is_allowed():
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise RunFailed(
            f"{name}: the environment variable {variable} is not set, but must hold the key"
        )
    if not (key.isascii() and key.isprintable()):
        raise RunFailed(
            f"{name}: the key in the environment variable {variable} has unprintable or non-ASCII "
            "characters"
        )
    return key


# Replies

_stored_only: list[None] = []


def asking_is_allowed() -> bool:
    """Whether requests may be sent."""
    return not _stored_only


@contextmanager
def stored_replies_only() -> Iterator[None]:
    """Let no request be sent, and so nothing be paid for, while the block runs."""
    _stored_only.append(None)
    try:
        yield
    finally:
        _stored_only.pop()


class Malformed(Exception):
    """A server's reply cannot be read. Raised by `read`."""


@dataclass(frozen=True)
class Reply:
    """A reply as `read` returned it. If it is unusable, `value` is None and `reason` says why."""

    value: Any = None
    reason: str = ""


class ReplyStore:
    """Replies by request, in one SQLite file. Each is on disk before the next request is sent."""

    def __init__(self, folder: Path, name: str):
        folder.mkdir(parents=True, exist_ok=True)
        self._name, self.path = name, folder / f"{name}.sqlite"
        # Without a transaction, every statement commits.
        self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        self._run(_TABLE)

    def _run(self, statement: str, *values: str) -> Any:
        """The first row of a statement's result; None without one."""
        try:
            return self._db.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise RunFailed(
                f"{self._name}: cannot use {self.path} ({error}); if it is damaged, delete it"
            ) from None

    def get(self, key: str) -> Reply | None:
        """The stored reply to a request; None if there is none."""
        row = self._run("select value from replies where key = ?", key)
        return Reply(json.loads(row[0])) if row else None

    def put(self, key: str, value: Any) -> None:
        """Store a value."""
        self._run("insert or replace into replies values (?, ?)", key, json.dumps(value))

    def close(self) -> None:
        """Close the file."""
        self._db.close()


# Requests


@dataclass(frozen=True)
class Remote:
    """One service: where it is, how its replies are read, and where they are stored.

    name: for messages, and the name of the file of stored replies. path: appended to `base_url`.
    folder: of that file. read: turns the bytes of a reply into a JSON value, or raises `Malformed`.

    The constructor raises RunFailed if the key is missing or the file is damaged, before any
    request is sent.
    """

    name: str
    options: RemoteOptions
    path: str
    folder: Path
    read: Callable[[bytes], Any]

    def __post_init__(self) -> None:
        key_of(self.name, self.options)
        ReplyStore(self.folder, self.name).close()

    @property
    def url(self) -> str:
        """The address that requests go to."""
        return f"{self.options.base_url}/{self.path}"

    def ask(
        self, bodies: Sequence[Mapping[str, Any]], progress: Progress = no_progress
    ) -> list[Reply]:
        """Replies to requests with these bodies, in order. Equal requests are sent once, stored
        replies reused.

        progress: of the context, to show how many replies have arrived.
        """
        keys, missing = list[str](), dict[str, Mapping[str, Any]]()
        replies: dict[str, Reply] = {}
        with closing(ReplyStore(self.folder, self.name)) as store:
            for body in bodies:
                request = json.dumps([self.url, body], sort_keys=True)
                key = hashlib.sha256(request.encode()).hexdigest()
                keys.append(key)
                stored = store.get(key)
                if stored:
                    replies[key] = stored
                else:
                    missing[key] = body
            if missing and not asking_is_allowed():
                raise RemoteError(
                    f"{self.name}: {len(missing)} replies are not stored in {self.folder}, and "
                    "nothing is asked or paid for here"
                )
            if missing:
                with progress(f"asking {self.name}", len(missing)) as done:
                    replies |= asyncio.run(self._all(missing, store, done))
        return [replies[key] for key in keys]

    async def _all(
        self,
        bodies: Mapping[str, Mapping[str, Any]],
        store: ReplyStore,
        done: Callable[[int], None],
    ) -> dict[str, Reply]:
        """Replies to all requests, a bounded number at a time; each is stored on arrival. The first
        failure ends all, and so does a request to stop.

        A judge may take minutes, and replies under way will have to be paid for, so they have
        LAST_SECONDS to arrive.
        """
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        options, waiting, replies = self.options, deque(bodies.items()), dict[str, Reply]()
        secret = key_of(self.name, options)
        async with AsyncOpenAI(
            api_key=secret or "none",
            base_url=options.base_url,
            max_retries=options.max_retries,
            # Redirects would receive the key.
            http_client=DefaultAsyncHttpxClient(
                timeout=options.timeout_seconds, follow_redirects=False, trust_env=False
            ),
        ) as client:

            async def work() -> None:
                while waiting:  # the workers share it
                    key, body = waiting.popleft()
                    reply = await self._reply(client, secret, body)
                    if not reply.reason:
                        store.put(key, reply.value)
                    replies[key] = reply
                    done(len(replies))

            count = min(options.concurrency, len(waiting))
            workers = [asyncio.create_task(work()) for _ in range(count)]
            try:
                await _finished(workers)
            except AlignkitError:
                waiting.clear()
                await asyncio.wait(workers, timeout=LAST_SECONDS)
                raise
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        return replies

    async def _reply(self, client: AsyncOpenAI, secret: str, body: Mapping[str, Any]) -> Reply:
        """The reply to a request. One that the server refuses, or that cannot be read, is
        unusable.
        """
        import httpx2
        from openai import APIConnectionError, APIStatusError, APITimeoutError, omit

        # Nothing of the environment is sent, and without a key no header for one.
        none = ["OpenAI-Organization", "OpenAI-Project"]
        if not secret:
            none.append("Authorization")
        options: Any = {"headers": dict.fromkeys(none, omit)}
        content = json.dumps(body).encode()  # ASCII: data may have an unpaired surrogate
        try:
            response = await client.post(
                self.url, content=content, cast_to=httpx2.Response, options=options
            )
        except APIStatusError as error:
            response = error.response
        except APITimeoutError:
            late = f"no answer within {self.options.timeout_seconds:g} s"
            raise self._error(f"{late}; {RESUME}\nhelp: {LATE}") from None
        except APIConnectionError as error:
            cause = error.__cause__
            raise self._error(f"{type(cause).__name__}: {cause}; {RESUME}") from None
        text = response.content
        if (
            len(secret) >= SHORTEST_KEY
        ):  # what echoes the key must not get it into a file or a message
            text = text.replace(secret.encode(), HIDDEN.encode())
        if response.status_code >= 300:
            return self._refused(response.status_code, text)
        try:
            return Reply(self.read(text))
        except Malformed as error:
            return Reply(reason=str(error))

    def _refused(self, status: int, text: bytes) -> Reply:
        """An unusable reply with the server's words. Raises RemoteError if it ends the run."""
        words = " ".join(text.decode("utf-8", "replace").split())[:MOST_QUOTED]
        if status in OF_A_ROW:
            return Reply(reason=f"HTTP {status}: {words}")
        raise self._error(f"HTTP {status}; the server says: {words or 'nothing'}; {RESUME}")

    def _error(self, problem: str) -> RemoteError:
        return RemoteError(f"{self.name}: {self.options.base_url}: {problem}")


async def _finished(workers: Sequence[asyncio.Task[None]]) -> None:
    """Wait for all workers. Raises what the first one raises that fails, or Stopped."""
    running = set(workers)
    while running:
        should_stop()
        ended, running = await asyncio.wait(
            running, timeout=STOP_SECONDS, return_when=asyncio.FIRST_EXCEPTION
        )
        for worker in ended:
            worker.result()
