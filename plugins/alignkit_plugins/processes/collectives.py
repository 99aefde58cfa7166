"""The collectives of several processes, which exchange values by those of accelerate."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor, nn
from torch.distributed import DistError

from alignkit.errors import AlignkitError, RunFailed, Stopped, message_of
from alignkit.io.digest import digest
from alignkit.training.collectives import Collectives

T = TypeVar("T")
# In errors of a lost connection, which have no type of their own
LOST = re.compile("gloo|NCCL|Connection closed")


class OtherFailed(AlignkitError):
    """Another process of the run has failed, and this one ends with it."""

    def __init__(self, text: str, exit_code: int = 1):
        super().__init__(text)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Failure:
    """What ended the work of a process, as it is sent to the others. stop: if it was one."""

    process: int
    message: str
    exit_code: int
    stop: Stopped | None

    def received(self) -> AlignkitError:
        """The error that the others raise: the same stop, or the name of the process that
        failed.
        """
        if self.stop is not None:
            return self.stop
        where = f"in process {self.process}: " if self.process else ""
        return OtherFailed(f"{where}{self.message}", self.exit_code)


class ProcessCollectives(Collectives):
    """One of several processes."""

    def __init__(self, process: int, processes: int, device: torch.device):
        self.process, self.processes, self.device = process, processes, device
        # Whether no word of a failure is sent: the others know, or wait for something else
        self.lost = False

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The block waits for the other processes. Raises OtherFailed if the connection to one is
        lost.
        """
        try:
            yield
        except (RuntimeError, OSError) as error:
            if not isinstance(error, DistError | OSError) and not LOST.search(str(error)):
                raise
            reason = str(error).partition("\n")[0][:200]
            text = f"another process of the run has ended, and its launcher says why ({reason})"
            raise OtherFailed(text) from None

    def gather(self, mine: T) -> list[T]:
        # As `torch.save` does, because pickle would write the whole storage of every view.
        buffer = io.BytesIO()
        torch.save(mine, buffer)
        self.lost = True  # also if the connection is lost
        with self.waiting():
            posts: list[bytes] = gather_object([buffer.getvalue()])
        everyone = list(map(self._received, posts))
        everyone[self.process] = mine
        for process, post in enumerate(everyone):
            if isinstance(post, Failure) and process != self.process:
                raise post.received()
        self.lost = isinstance(mine, Failure)
        return everyone

    def fail(self, error: BaseException) -> None:
        """See `Collectives`. Nothing is sent if the others know."""
        if not self.lost:
            message = message_of(error).removeprefix("error: ")
            stop = error if isinstance(error, Stopped) else None
            failure = Failure(self.process, message, getattr(error, "exit_code", 1), stop)
            with suppress(Exception):
                ProcessCollectives.gather(self, failure)

    @contextmanager
    def _failing_together(self) -> Iterator[None]:
        """End the block in every process if it fails or is stopped in one."""
        try:
            yield
        except Exception as error:
            self.fail(error)
            raise

    def on_main_process(self, work: Callable[[], T]) -> T:
        value = None
        if self.process == 0:
            with self._failing_together():
                value = work()
        return self.gather(value)[0]  # type: ignore[return-value]

    def map_sharded(
        self,
        sizes: Sequence[int],
        work: Callable[[Sequence[int]], Sequence[T]],
        main_only: bool = False,
    ) -> list[T]:
        own, done = self.partition(sizes, main_only)[self.process], list[T]()
        if own:
            with self._failing_together():
                done += work(own)
        return super().map_sharded(sizes, lambda share: done, main_only)

    def should_stop(self, check: Callable[[], None]) -> None:
        reason = ""
        try:
            check()
        except Stopped as stopped:
            reason = str(stopped)
        reasons = list(filter(None, self.gather(reason)))
        if reasons:
            self.lost = True  # all of them stop
            raise Stopped(reasons[0])

    def compare(self, what: str, facts: Callable[[], Mapping[str, Any]]) -> None:
        own = {}
        for name, value in facts().items():
            own[name] = digest(json.loads(json.dumps(value, default=str)))
        first, *others = self.gather(own)
        for process, theirs in enumerate(others, 1):
            differ = sorted({name for name, _ in first.items() ^ theirs.items()})
            if differ:
                raise RunFailed(
                    f"{what} is not the same in process 0 and in process {process}: "
                    f"{', '.join(differ)}\nhelp: let every machine have the same files, the same "
                    "packages and the same command"
                )

    def close(self) -> None:
        """See `Collectives`. Threads that still use the connections would abort the process."""
        PartialState().destroy_process_group()

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Let each parameter's gradient be the sum over processes, in fp32. One that no process has
        stays None.
        """
        parameters = list(parameters)
        present = self.gather([parameter.grad is not None for parameter in parameters])
        # Others that wait for a sum would take a word of a failure for numbers, or wait forever.
        self.lost = True
        for parameter, has in zip(parameters, zip(*present, strict=True), strict=True):
            if any(has):
                mine = _gradient(parameter).float()
                with self.waiting():
                    total = reduce(mine, reduction="sum")
                parameter.grad = total.to(parameter.dtype)
        self.lost = False

    def _received(self, content: bytes) -> Any:
        # Bytes of this run's own processes, which run the same code.
        return torch.load(io.BytesIO(content), map_location=self._here, weights_only=False)

    def _here(self, storage: Any, location: str) -> Any:
        """What was on another process's GPU comes to this one's; the rest stays in memory."""
        return storage if location == "cpu" else storage.to(device=self.device)


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
