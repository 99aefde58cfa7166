"""JSON over HTTP for judges and rewards on a server: bounded, retried, and every reply kept on disk.

    remote = Remote("my_reward", self.options, "score", context.cache, read)  # options: your subclass of RemoteOptions
    replies = remote.ask([{"text": ...}, ...])  # one Reply a body, in order

`read` turns a reply's bytes into a value that JSON can hold (what is kept), or raises `Malformed`. What may pass
(no connection, time-outs, 408, 429, 5xx, malformed replies) is tried again; a hopeless status or a server that stays
away ends the run with a `RemoteError`, and what was answered until then is not asked again.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import os
import random
import re
import socket
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, field_validator

from alignkit.errors import RemoteError, RunFailed
from alignkit.options import Options

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState

MOST_BYTES = 1 << 20  # a longer body is malformed
LONGEST_PAUSE = 60.0  # seconds, of our own backoff; a server's Retry-After may ask for more
_TABLE = "create table if not exists replies (key text primary key, value text)"
_HOPELESS = {
    401: "the key in {variable} was not accepted",
    403: "the key in {variable} is not allowed to ask for this",
    404: "there is no {path} there; is base_url right?",
}


class RemoteOptions(Options):
    """What everything that asks a server can be told."""

    model_config = ConfigDict(hide_input_in_errors=True)  # a key pasted into the wrong place is not repeated

    base_url: str = Field(description="address that the service's paths begin with, e.g. http://localhost:8000/v1")
    api_key_env: str = Field(default="", description="environment variable that holds the key (never the key itself)")
    concurrency: int = Field(default=8, ge=1, le=256, description="most requests at the same time")
    timeout_seconds: float = Field(default=60.0, gt=0, description="for one request, from connecting to the last byte")
    deadline_seconds: float = Field(default=1800.0, gt=0, description="for one batch of requests with all retries")
    max_retries: int = Field(default=5, ge=0, description="further attempts after one that may succeed later")
    backoff_seconds: float = Field(default=1.0, gt=0, description="first pause between attempts; doubles, with jitter")
    trust_env: bool = Field(default=False, description="use proxies and certificates that the environment names")

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must begin with http:// or https:// and name a host")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must be an address alone: name the key's environment variable in api_key_env")
        if _is_link_local(parts.hostname):
            raise ValueError("link-local addresses are not allowed")
        return url.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _variable_name(cls, name: str) -> str:
        if name and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError("must be the name of an environment variable, not the key itself")
        return name


def _is_link_local(host: str) -> bool:
    """Whether a literal address, in any of the forms a resolver accepts, is link-local (cloud metadata services)."""
    try:
        return ipaddress.ip_address(host).is_link_local
    except ValueError:
        pass
    try:
        return ipaddress.ip_address(socket.inet_aton(host)).is_link_local
    except OSError:
        return False


class TryAgain(Exception):
    """The attempt failed in a way that may pass. `pause`: seconds the server asked for."""

    def __init__(self, reason: str, pause: float | None = None):
        super().__init__(reason)
        self.pause = pause


class Malformed(TryAgain):
    """The server replied, but not with what was asked for: worth another try, then unusable. Raised by `read`."""


@dataclass(frozen=True)
class Reply:
    """What `read` made of the server's reply; where there is nothing to use, `value` is None and `reason` says why."""

    value: Any = None
    reason: str = ""


Read = Callable[[bytes], Any]


@dataclass(frozen=True)
class Remote:
    """One service: where it is, how its replies are read, and where they are kept.

    name: for messages and the file of kept replies. path: what follows `base_url`. folder: of kept replies. help:
    words for a status that ends the run, where the general ones do not help; {variable} and {path} are filled in.
    Creating one raises RunFailed when the key is missing or the folder's file is damaged: before anything is run.
    """

    name: str
    options: RemoteOptions
    path: str
    folder: Path
    read: Read
    help: Mapping[int, str] | None = None

    def __post_init__(self) -> None:
        self.key()
        with closing(Kept(self.folder, self.name)):
            pass

    @property
    def url(self) -> str:
        return f"{self.options.base_url}/{self.path}"

    def key(self) -> str:
        """The key from the environment; messages never hold it."""
        variable = self.options.api_key_env
        if not variable:
            return ""
        key = os.environ.get(variable, "").strip()
        if not key:
            raise RunFailed(f"{self.name}: the environment variable {variable} is not set; it must hold the key")
        if not (key.isascii() and key.isprintable()):
            raise RunFailed(f"{self.name}: the environment variable {variable} does not hold a key (odd characters)")
        return key

    def ask(self, bodies: Sequence[Mapping[str, Any]]) -> list[Reply]:
        """Replies to requests with these bodies, in order; equal ones are sent once, kept ones not at all."""
        keys = [self._filed_under(body) for body in bodies]
        with closing(Kept(self.folder, self.name)) as kept:
            replies = kept.get(keys)
            missing = {key: body for key, body in zip(keys, bodies, strict=True) if key not in replies}
            if missing:
                replies |= asyncio.run(_ask_all(self, missing, kept))
        return [replies[key] for key in keys]

    def _filed_under(self, body: Mapping[str, Any]) -> str:
        """Everything that a reply depends on."""
        return hashlib.sha256(json.dumps([self.url, body], sort_keys=True).encode()).hexdigest()


class Kept:
    """Replies by request, in one SQLite file: each is on disk before the next request is sent."""

    def __init__(self, folder: Path, name: str):
        folder.mkdir(parents=True, exist_ok=True)
        self._name, self._path = name, folder / f"{name}.sqlite"
        try:
            self._db = sqlite3.connect(self._path, timeout=60, isolation_level=None)  # every statement commits
            self._db.execute(_TABLE)
        except sqlite3.Error as error:
            raise RunFailed(f"{name}: cannot use {self._path} ({error}); if damaged, move it away") from None

    def get(self, keys: Sequence[str]) -> dict[str, Reply]:
        """The replies known among `keys`."""
        known = {}
        for key in keys:
            row = self._db.execute("select value from replies where key = ?", (key,)).fetchone()
            if row is not None:
                known[key] = Reply(json.loads(row[0]))
        return known

    def put(self, key: str, value: Any) -> None:
        """Keeps a value for good."""
        try:
            self._db.execute("insert or replace into replies values (?, ?)", (key, json.dumps(value)))
        except sqlite3.Error as error:
            raise RunFailed(f"{self._name}: cannot write {self._path} ({error})") from None

    def close(self) -> None:
        self._db.close()


# --- inside


async def _ask_all(remote: Remote, bodies: Mapping[str, Any], kept: Kept) -> dict[str, Reply]:
    """Replies to all requests, a bounded number at a time; each is kept on arrival. The first failure ends all."""
    import httpx

    options, key = remote.options, remote.key()
    replies: dict[str, Reply] = {}
    waiting = iter(bodies.items())
    # No compression: what is counted on the wire is then what fills memory.
    headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    limits = httpx.Limits(max_connections=options.concurrency)
    try:
        async with (
            asyncio.timeout(options.deadline_seconds),
            httpx.AsyncClient(
                headers=headers, limits=limits, timeout=None, follow_redirects=False, trust_env=options.trust_env
            ) as client,
            asyncio.TaskGroup() as tasks,
        ):
            for _ in range(min(options.concurrency, len(bodies))):
                tasks.create_task(_worker(_Asker(client, remote, key), waiting, replies, kept))
    except TimeoutError:
        raise RemoteError(
            f"{remote.name}: {len(bodies) - len(replies)} of {len(bodies)} requests were still open after "
            f"deadline_seconds={options.deadline_seconds:g}; the replies so far are kept"
        ) from None
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return replies


async def _worker(asker: _Asker, waiting: Iterator[tuple[str, Any]], replies: dict[str, Reply], kept: Kept) -> None:
    """Asks until nothing waits; `waiting` and `replies` are shared with the other workers."""
    for key, body in waiting:
        replies[key] = reply = await asker.ask(body)
        if not reply.reason:
            kept.put(key, reply.value)


class _Asker:
    """One request after the other over a shared client."""

    def __init__(self, client: httpx.AsyncClient, remote: Remote, secret: str):
        self._client = client
        self._remote, self._options = remote, remote.options
        self._secret = secret
        self._jitter = random.Random()  # its own: pauses must not move anybody's random numbers

    async def ask(self, body: Mapping[str, Any]) -> Reply:
        """The reply after as many attempts as it takes."""
        import tenacity

        options = self._options
        attempts = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(TryAgain),
            stop=tenacity.stop_after_attempt(options.max_retries + 1)
            | tenacity.stop_before_delay(options.deadline_seconds),
            wait=self._pause,
            reraise=True,
        )
        try:
            return await attempts(self._attempt, body)
        except Malformed as error:
            return Reply(reason=str(error))
        except TryAgain as error:
            raise RemoteError(
                f"{self._remote.name}: {options.base_url}: {error}, after {options.max_retries} retries; "
                "the replies so far are kept, run again to continue"
            ) from None

    def _pause(self, state: RetryCallState) -> float:
        """Seconds until the next attempt: what the server asked for, else doubling, with jitter."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, TryAgain) and error.pause is not None:
            return error.pause
        doubled = self._options.backoff_seconds * 2.0 ** min(state.attempt_number - 1, 30)
        return min(LONGEST_PAUSE, doubled) * self._jitter.uniform(0.5, 1.0)

    async def _attempt(self, body: Mapping[str, Any]) -> Reply:
        import httpx

        content = json.dumps(body).encode()  # pure ASCII: half a surrogate pair in the data is no error here
        try:
            async with (
                asyncio.timeout(self._options.timeout_seconds),  # httpx's own would let a slow drip go on for ever
                self._client.stream("POST", self._remote.url, content=content) as response,
            ):
                text = await _limited(response)
        except TimeoutError:
            raise TryAgain(f"no answer within {self._options.timeout_seconds:g} s") from None
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise TryAgain(self._safe(f"{type(error).__name__}: {error}")) from None
        if response.status_code != 200:
            return self._refused(response, text)
        if len(text) > MOST_BYTES:
            raise Malformed("the reply is larger than 1 MiB")
        return Reply(self._remote.read(text))

    def _refused(self, response: httpx.Response, text: bytes) -> Reply:
        """What a status other than 200 means: another try, the end of the run, or an unusable reply."""
        status, name = response.status_code, self._remote.name
        if status in (408, 429) or status >= 500:
            raise TryAgain(f"HTTP {status}", retry_after(response.headers.get("retry-after")))
        if status < 400:
            raise RemoteError(
                f"{name}: {self._options.base_url} answers with HTTP {status}; redirects are not followed "
                "(the key would go with them): give the final address as base_url"
            )
        if words := (_HOPELESS | dict(self._remote.help or {})).get(status):
            variable = self._options.api_key_env or "(no api_key_env is set)"
            raise RemoteError(
                f"{name}: {self._options.base_url} answers with HTTP {status}: "
                + words.format(variable=variable, path=self._remote.path)
            )
        return Reply(reason=f"HTTP {status}: " + self._safe(text.decode("utf-8", "replace"))[:200])

    def _safe(self, text: str) -> str:
        """Words of others on one line, without the key."""
        return " ".join((text.replace(self._secret, "***") if self._secret else text).split())


async def _limited(response: httpx.Response) -> bytes:
    """The body; reading ends soon after the limit, so that a longer one can be told by its length."""
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > MOST_BYTES:
            break
    return bytes(body)


def retry_after(value: str | None) -> float | None:
    """Seconds to wait by a Retry-After header, which holds seconds or a date; None if it makes no sense."""
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
