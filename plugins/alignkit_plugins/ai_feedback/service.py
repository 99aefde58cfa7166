"""A service on a server: requests, a bounded number at a time, and what it replied before."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import AlignkitError, RemoteError, should_stop
from alignkit.io.text import HIDDEN
from alignkit.reward import Progress, no_progress
from alignkit_plugins.ai_feedback.replies import Malformed, Reply, ReplyStore, TryAgain
from alignkit_plugins.ai_feedback.server_options import RemoteOptions, key_of
from alignkit_plugins.ai_feedback.stored_replies import asking_is_allowed

if TYPE_CHECKING:
    import httpx2
    from tenacity import RetryCallState


SHORTEST_KEY = 6  # characters: a shorter one, such as `none`, is a word of replies
MOST_BYTES = 1 << 20  # a longer body is malformed
# Seconds between attempts; a server's Retry-After may ask for more
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
LONGEST_WAIT = 1800.0  # seconds in which the last attempt begins
MOST_MALFORMED = 20  # requests in a row without a reply that can be used, each after its retries
STOP_SECONDS = 0.2  # between looks at whether the run should stop
LAST_SECONDS = 3.0  # for the last replies after a failure or a request to stop
_LATE = (
    "\n"
    "help: raise 'timeout_seconds', or lower 'concurrency' to what the server answers at once: "
    "the others wait there"
)
_FATAL = {
    401: "the key in {variable} was not accepted",
    403: "the key in {variable} is not allowed to ask for this",
    404: "it has no path {path}; check base_url",
}

Read = Callable[[bytes], Any]
Fits = Callable[[Mapping[str, Any], Any], str]
Unusable = Callable[[int, Reply], str]


@dataclass(frozen=True)
class Remote:
    """One service: where it is, how its replies are read, and where they are stored.

    name: for messages, and the name of the file of stored replies. path: appended to `base_url`.
    folder: of that file. read: turns the bytes of a reply into a JSON value, or raises `Malformed`.
    help: explains statuses that end the run, if the general texts do not; {variable} and {path} are
    filled in. fits: says why a value cannot be the reply to a request's body, such as a wrong
    number of scores; empty if it can. A stored reply that does not fit, because the recipe has
    changed, is asked for again.

    The constructor raises RunFailed if the key is missing or the file is damaged, before any
    request is sent.
    """

    name: str
    options: RemoteOptions
    path: str
    folder: Path
    read: Read
    help: Mapping[int, str] | None = None
    fits: Fits = lambda body, value: ""

    def __post_init__(self) -> None:
        self.key()
        with closing(ReplyStore(self.folder, self.name)):
            pass

    @property
    def url(self) -> str:
        """The address that requests go to."""
        return f"{self.options.base_url}/{self.path}"

    def key(self) -> str:
        """The key, from the environment. Messages never contain it."""
        return key_of(self.name, self.options)

    def ask(
        self,
        bodies: Sequence[Mapping[str, Any]],
        progress: Progress = no_progress,
        unusable: Unusable = lambda *_: "",
    ) -> list[Reply]:
        """Replies to requests with these bodies, in order. Equal requests are sent once, stored
        replies reused.

        progress: of the context, to show how many replies have arrived. unusable: why a reply, with
        its place, is of no use: a stored one is asked for again, because the server may have been
        repaired.
        """
        # A hash of everything that a reply depends on.
        asked_for = (json.dumps([self.url, body], sort_keys=True).encode() for body in bodies)
        keys = [hashlib.sha256(text).hexdigest() for text in asked_for]
        with closing(ReplyStore(self.folder, self.name)) as store:
            asked = dict(zip(keys, bodies, strict=True))
            replies = {
                key: reply
                for key, reply in store.get(keys).items()
                if not self.fits(asked[key], reply.value)
            }
            if asking_is_allowed():
                first = dict(zip(reversed(keys), reversed(range(len(keys))), strict=True))
                replies = {
                    key: reply for key, reply in replies.items() if not unusable(first[key], reply)
                }
            missing = {key: body for key, body in asked.items() if key not in replies}
            if missing:
                if not asking_is_allowed():
                    stored = (
                        f"{len(missing)} of {len(asked)} replies are not stored in {self.folder}"
                    )
                    raise RemoteError(
                        f"{self.name}: {stored}, and nothing is asked or paid for here"
                    )
                with progress(f"asking {self.name}", len(missing)) as done:
                    replies |= asyncio.run(_ask_all(self, missing, store, done))
        return [replies[key] for key in keys]


# Requests


async def _ask_all(
    remote: Remote, bodies: Mapping[str, Any], store: ReplyStore, done: Callable[[int], None]
) -> dict[str, Reply]:
    """Replies to all requests, a bounded number at a time, each stored on arrival. The first
    failure ends all.
    """
    import httpx2

    options, key = remote.options, remote.key()
    replies: dict[str, Reply] = {}
    waiting = iter(bodies.items())
    # Without compression, the bytes counted on arrival are the bytes in memory.
    headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    limits = httpx2.Limits(max_connections=options.concurrency)
    async with httpx2.AsyncClient(
        headers=headers, limits=limits, timeout=None, follow_redirects=False, trust_env=False
    ) as client:
        malformed: list[str] = []
        count = min(options.concurrency, len(bodies))
        askers = [Asker(client, remote, key, store, malformed) for _ in range(count)]
        await _all_done(
            {asyncio.create_task(_worker(a, waiting, replies, done)): a for a in askers}
        )
    return replies


async def _worker(
    asker: Asker,
    waiting: Iterator[tuple[str, Any]],
    replies: dict[str, Reply],
    done: Callable[[int], None],
) -> None:
    """Send requests until none is waiting; `waiting` and `replies` are shared by all workers."""
    for key, body in waiting:
        replies[key] = await asker.ask(key, body)
        done(len(replies))
        if asker.ending.is_set():
            return


async def _all_done(workers: Mapping[asyncio.Task[None], Asker]) -> None:
    """Wait for all workers. The first failure ends all, and so does a request to stop: a judge may
    take minutes.

    Replies to requests that are under way will have to be paid for, so they have LAST_SECONDS to
    arrive.
    """
    running = set(workers)
    try:
        while running:
            should_stop()
            finished, running = await asyncio.wait(
                running, timeout=STOP_SECONDS, return_when=asyncio.FIRST_EXCEPTION
            )
            for worker in finished:
                worker.result()
    except AlignkitError:
        for worker in running:
            workers[worker].ending.set()
        under_way = {worker for worker in running if workers[worker].under_way}
        if under_way:
            await asyncio.wait(under_way, timeout=LAST_SECONDS)
        raise
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


class Asker:
    """Sends one request after another over a shared client, and stores the replies.

    malformed: why the latest requests of all askers had no reply that can be used; emptied by a
    reply that can. ending: set when this request is its last. under_way: whether a request waits
    for its reply.
    """

    def __init__(
        self,
        client: httpx2.AsyncClient,
        remote: Remote,
        secret: str,
        store: ReplyStore,
        malformed: list[str],
    ):
        self._client, self._store = client, store
        self._remote, self._options = remote, remote.options
        self._secret, self._malformed = secret, malformed
        self._jitter = random.Random()  # a separate one: pauses must not change other random draws
        self.ending, self.under_way = threading.Event(), False

    async def ask(self, key: str, body: Mapping[str, Any]) -> Reply:
        """The reply, after retries if needed; stored if it is usable."""
        import tenacity

        options = self._options
        attempts = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(TryAgain),
            stop=tenacity.stop_after_attempt(options.max_retries + 1)
            | tenacity.stop_before_delay(LONGEST_WAIT)
            | tenacity.stop_when_event_set(self.ending),
            wait=self._pause,
            reraise=True,
        )
        try:
            reply: Reply = await attempts(self._attempt, body)
        except Malformed as error:
            self._malformed.append(str(error))
            if len(self._malformed) >= MOST_MALFORMED:
                raise RemoteError(
                    f"{self._remote.name}: {options.base_url}: {MOST_MALFORMED} requests in a row "
                    f"had no reply that can be used: {error}; the replies received are stored; "
                    "repeat the command to resume"
                ) from None
            return Reply(reason=str(error))
        except TryAgain as error:
            asked = f", and asks for a pause of {error.pause:g} s" if error.pause else ""
            count = attempts.statistics["attempt_number"]
            raise RemoteError(
                f"{self._remote.name}: {options.base_url}: {error}{asked}, after {count} "
                f"attempt{'s' * (count > 1)}; the replies received are stored; repeat the command "
                f"to resume{error.help}"
            ) from None
        self._malformed.clear()
        if not reply.reason:
            self._store.put(key, reply.value)
        return reply

    def _pause(self, state: RetryCallState) -> float:
        """Seconds before the next attempt: as the server asked, else doubling, with jitter."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, TryAgain) and error.pause is not None:
            return error.pause
        doubled = FIRST_PAUSE * 2.0 ** min(state.attempt_number - 1, 30)
        return min(LONGEST_PAUSE, doubled) * self._jitter.uniform(0.5, 1.0)

    async def _attempt(self, body: Mapping[str, Any]) -> Reply:
        import httpx2

        # ASCII, so that an unpaired surrogate in the data can be sent
        content = json.dumps(body).encode()
        self.under_way = True
        try:
            async with (
                # Httpx's own limit never ends a slow trickle of bytes
                asyncio.timeout(self._options.timeout_seconds),
                self._client.stream("POST", self._remote.url, content=content) as response,
            ):
                text = await _limited(response)
        except TimeoutError:
            raise TryAgain(
                f"no answer within {self._options.timeout_seconds:g} s", help=_LATE
            ) from None
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise TryAgain(self._safe(f"{type(error).__name__}: {error}")) from None
        finally:
            self.under_way = False
        # A server that echoes the key must not get it into a file
        if len(self._secret) >= SHORTEST_KEY:
            text = text.replace(self._secret.encode(), HIDDEN.encode())
        if response.status_code != 200:
            return self._refused(response, text)
        if len(text) > MOST_BYTES:
            raise Malformed("the reply is larger than 1 MiB")
        value = self._remote.read(text)
        if reason := self._remote.fits(body, value):
            raise Malformed(reason)
        self._check_model(body, text)
        return Reply(value)

    def _check_model(self, body: Mapping[str, Any], text: bytes) -> None:
        """Raise RemoteError if another model replied to earlier requests: their replies do not
        belong together.
        """
        model = model_in(text)
        if model is None:
            return
        earlier = self._store.model(self._remote.url, str(body.get("model")), model)
        if earlier != model:
            raise RemoteError(
                f"{self._remote.name}: {self._options.base_url} replies as the model "
                f"{self._safe(model)!r:.80}, and earlier replies came from "
                f"{self._safe(earlier)!r:.80}; those of two models do not belong together\n"
                f"help: ask for a version that stays; or delete {self._store.path} to ask "
                "everything again"
            )

    def _refused(self, response: httpx2.Response, text: bytes) -> Reply:
        """Handle a status other than 200: retry, end the run, or return an unusable reply."""
        status, name = response.status_code, self._remote.name
        if status in (408, 429) or status >= 500:
            raise TryAgain(f"HTTP {status}", retry_after(response.headers.get("retry-after")))
        if status < 300:
            raise Malformed(f"the reply has the status {status} instead of 200")
        if status < 400:
            raise RemoteError(
                f"{name}: {self._options.base_url} replied with HTTP {status}; redirects are not "
                "followed, because they would receive the key; set base_url to the final address"
            )
        if words := (_FATAL | dict(self._remote.help or {})).get(status):
            variable = self._options.api_key_env or "(no api_key_env is set)"
            raise RemoteError(
                f"{name}: {self._options.base_url} replied with HTTP {status}: "
                + words.format(variable=variable, path=self._remote.path)
                + (
                    f"; the server says: {said[:200]}"
                    if (said := self._safe(text.decode("utf-8", "replace")))
                    else ""
                )
            )
        return Reply(reason=f"HTTP {status}: " + self._safe(text.decode("utf-8", "replace"))[:200])

    def _safe(self, text: str) -> str:
        """Text from outside, on one line and without the key."""
        return " ".join((text.replace(self._secret, "***") if self._secret else text).split())


def model_in(text: bytes) -> str | None:
    """The name of the model that replied, if a JSON reply says it."""
    try:
        model = json.loads(text)["model"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return model if isinstance(model, str) else None


async def _limited(response: httpx2.Response) -> bytes:
    """The body, or a little more than MOST_BYTES of a longer one."""
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > MOST_BYTES:
            break
    return bytes(body)


def retry_after(value: str | None) -> float | None:
    """Seconds to wait according to a Retry-After header: seconds or a date; None if it is
    neither.
    """
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
