"""Requests that wait for the model. One thread answers them in order, and those that sample alike together."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from alignkit.data.group import Message
from alignkit.errors import AlignkitError, DataError, RunFailed
from alignkit.models.next_token import Sampling
from alignkit.stopping import Stopped
from alignkit.tokens.text_tokens import Ids
from alignkit_apps.policies.policy import Policy
from alignkit_apps.policies.streaming import Piece, Question

MOST_WAITING = 64  # requests
STOPPING = "the server is stopping"
POLL = 0.1  # seconds between two looks at what else the thread is asked to do


class Busy(Exception):
    """Too many requests are waiting."""


class Stopping(RunFailed):
    """The server is about to end."""


@dataclass(frozen=True)
class Read:
    """A request has been read, and its answers follow."""

    prompt_tokens: int


@dataclass(frozen=True)
class Failed:
    """A request that cannot be answered, or no further."""

    error: BaseException


Event = Read | Piece | Failed


@dataclass(eq=False)
class Job:
    """A request: a conversation, answered `n` times.

    tell: is given what happens, in the model's thread: Read, then pieces until every answer is complete; or Failed,
    after which nothing follows. in_pieces: whether it wants text before an answer is complete.
    logprobs: see `Question`.
    """

    policy: Policy
    messages: Sequence[Message]
    sampling: Sampling
    n: int
    seed: int
    tell: Callable[[Event], None]
    in_pieces: bool = False
    logprobs: int | None = None
    canceled: bool = False

    def cancel(self) -> None:
        """Say, from any thread, that nobody wants the answers any more."""
        self.canceled = True

    def like(self, other: Job) -> bool:
        """Whether both can be answered together."""
        return self.policy is other.policy and self.sampling == other.sampling


class Work:
    """The requests that wait, and the loop that answers them."""

    def __init__(self) -> None:
        self._waiting, self._changed = deque[Job](), threading.Condition()
        self.stopping = False

    def submit(self, job: Job) -> None:
        """Let a request wait for its turn. Raises Busy if too many do, and Stopping."""
        with self._changed:
            self.should_stop()
            if len(self._waiting) >= MOST_WAITING:
                raise Busy
            self._waiting.append(job)
            self._changed.notify()

    def stop(self) -> None:
        """End the loop, and the answers that are being written, from any thread."""
        self.stopping = True

    def should_stop(self) -> None:
        """Raise Stopping if the loop is to end."""
        if self.stopping:
            raise Stopping(STOPPING)

    def run(self, poll: Callable[[], None] = lambda: None) -> None:
        """Answer requests until `stop` is called. poll: called now and then; what it raises ends the loop."""
        try:
            while not self.stopping:
                jobs = self._next()
                self._answer(jobs)
                poll()
        finally:
            with self._changed:
                self.stopping = True
                self._fail(self._waiting, Stopping(STOPPING))

    def _next(self) -> list[Job]:
        """The request that has waited longest, with those like it; none if there is none for a while."""
        with self._changed:
            if not self._waiting:
                self._changed.wait(POLL)
            if not self._waiting:
                return []
            first = self._waiting[0]
            jobs = [job for job in self._waiting if job.like(first)]
            self._waiting = deque(job for job in self._waiting if not job.like(first))
            return jobs

    def _answer(self, jobs: Sequence[Job]) -> None:
        by_room: dict[int, list[tuple[Job, Ids]]] = {}
        for job in jobs:
            if job.canceled:
                continue
            try:
                prompt = job.policy.prompt(job.messages)
            except DataError as error:
                job.tell(Failed(error))
                continue
            room = min(job.sampling.max_new_tokens, job.policy.room(prompt))
            by_room.setdefault(room, []).append((job, prompt))
        for room, read in by_room.items():
            self._write(read, room)

    def _write(self, read: Sequence[tuple[Job, Ids]], room: int) -> None:
        """Answer requests whose prompts have been read, in at most `room` tokens."""
        policy, sampling = read[0][0].policy, replace(read[0][0].sampling, max_new_tokens=room)
        for job, prompt in read:
            job.tell(Read(len(prompt)))
        try:
            policy.answer([self._question(*pair) for pair in read], sampling)
        except Stopped:  # `poll` will raise it, too
            self._fail((job for job, _ in read), Stopping(STOPPING))
            return
        except Exception as error:  # whatever it is, it must not end the server; whoever asked hears of it
            self._fail((job for job, _ in read), error)
            return
        if self.stopping:
            self._fail((job for job, _ in read), Stopping(STOPPING))

    def _question(self, job: Job, prompt: Ids) -> Question:
        def wanted() -> bool:
            return not (job.canceled or self.stopping)

        def heard(piece: Piece) -> None:
            if wanted():
                job.tell(piece)

        streams = job.policy.streams(job.seed, job.n)
        return Question(prompt, streams, heard, job.in_pieces, wanted, job.logprobs, job.messages)

    def _fail(self, jobs: Iterable[Job], error: BaseException) -> None:
        for job in jobs:
            if not job.canceled:
                job.tell(Failed(error if isinstance(error, AlignkitError) else RunFailed(f"unexpected {error!r}")))
