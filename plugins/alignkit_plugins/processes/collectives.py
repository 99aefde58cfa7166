"""The collectives of several processes: what they exchange goes through accelerate's
collectives.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor, nn

from alignkit.errors import AlignkitError, RunFailed, Stopped, message_of
from alignkit.io.digest import digest
from alignkit.training.collectives import Collectives

T = TypeVar("T")
BUCKET = 2**27  # numbers that are added at once: 512 MB in fp32


class OtherFailed(AlignkitError):
    """Another process of the run has failed, and this one ends with it."""

    def __init__(self, text: str, exit_code: int = 1):
        super().__init__(text)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Failure:
    """What ended the work of a process, as it is sent to the others. error: its type, arguments and
    attributes.
    """

    process: int
    message: str
    exit_code: int
    error: bytes

    @classmethod
    def of(cls, process: int, error: BaseException) -> Failure:
        sent = b""
        with suppress(Exception):  # what cannot be sent
            sent = pickle.dumps((type(error), error.args, vars(error)))
        return cls(
            process, message_of(error).removeprefix("error: "), getattr(error, "exit_code", 1), sent
        )

    def received(self) -> BaseException:
        """The error that the others raise: that of process 0, a stop, or the name of the process
        that failed.
        """
        with suppress(Exception):
            kind, arguments, attributes = pickle.loads(self.error)
            if self.process == 0 or issubclass(kind, Stopped):
                error: BaseException = kind.__new__(kind, *arguments)
                error.args = arguments
                error.__dict__.update(attributes)
                return error
        return OtherFailed(f"in process {self.process}: {self.message}", self.exit_code)


class ProcessCollectives(Collectives):
    """One of several processes."""

    def __init__(self, process: int, processes: int, device: torch.device):
        self.process, self.processes, self.device = process, processes, device
        # Whether no word of a failure is sent: the others know, or wait for something else
        self._failed = False

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The block waits for the other processes. Raises OtherFailed if the connection to one is
        lost.
        """
        try:
            yield
        except (RuntimeError, OSError) as error:
            text = (
                "another process of the run has ended, and its launcher says why "
                f"({str(error).splitlines()[0]:.200})"
            )
            raise OtherFailed(text) from None

    def gather(self, mine: T) -> list[T]:
        content = _packed(mine)
        self._failed = True  # also if the connection is lost
        with self.waiting():
            posts: list[bytes] = gather_object([content])
        everyone = [
            mine if process == self.process else self._unpacked(post)
            for process, post in enumerate(posts)
        ]
        for process, post in enumerate(everyone):
            if isinstance(post, Failure) and process != self.process:
                raise post.received()
        self._failed = isinstance(mine, Failure)
        return everyone

    def fail(self, error: BaseException) -> None:
        """See `Collectives`. Nothing is sent if the others know."""
        if not self._failed:
            with suppress(Exception):
                ProcessCollectives.gather(self, Failure.of(self.process, error))

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """If the block fails or is stopped, it ends so in every process."""
        try:
            yield
        except Exception as error:
            self.fail(error)
            raise

    def on_rank0(self, work: Callable[[], T]) -> T:
        value = None
        if self.process == 0:
            with self._telling():
                value = work()
        return self.gather(value)[0]  # type: ignore[return-value]

    def map_sharded(
        self, sizes: Sequence[int], work: Callable[[Sequence[int]], Sequence[T]], led: bool = False
    ) -> list[T]:
        own = self.partition(sizes, led)[self.process]
        with self._telling():
            done = work(own) if own else []
        return super().map_sharded(sizes, lambda share: done, led)

    def should_stop(self, check: Callable[[], None]) -> None:
        reason = ""
        try:
            check()
        except Stopped as stopped:
            reason = str(stopped)
        reasons = list(filter(None, self.gather(reason)))
        if reasons:
            self._failed = True  # all of them stop
            raise Stopped(reasons[0])

    def compare(self, what: str, facts: Callable[[], Mapping[str, Any]]) -> None:
        own = {
            name: digest(json.loads(json.dumps(value, default=str)))
            for name, value in facts().items()
        }
        first, *others = self.gather(own)
        for process, theirs in enumerate(others, 1):
            differ = sorted(
                name for name in first.keys() | theirs.keys() if first.get(name) != theirs.get(name)
            )
            if differ:
                raise RunFailed(
                    f"{what} is not the same in process 0 and in process {process}: "
                    f"{', '.join(differ)}\n"
                    "help: let every machine have the same files, the same packages and the same "
                    "command"
                )

    def close(self) -> None:
        """See `Collectives`. Threads that still use the connections would abort the process."""
        PartialState().destroy_process_group()

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Let each parameter's gradient be the sum over processes, in fp32. One that no process has
        stays None.
        """
        parameters = list(parameters)
        present = [
            any(has)
            for has in zip(*self.gather([p.grad is not None for p in parameters]), strict=True)
        ]
        # Others that wait for a sum would take a word of a failure for numbers, or wait forever
        self._failed = True
        for bucket in _buckets([p for p, has in zip(parameters, present, strict=True) if has]):
            flat = torch.cat([_gradient(parameter).flatten().float() for parameter in bucket])
            with self.waiting():
                total = reduce(flat, reduction="sum")
            for parameter, part in zip(
                bucket, total.split([p.numel() for p in bucket]), strict=True
            ):
                parameter.grad = part.view_as(parameter).to(parameter.dtype)
        self._failed = False

    def _unpacked(self, content: bytes) -> Any:
        # Bytes of this run's own processes, which run the same code.
        return torch.load(io.BytesIO(content), map_location=self._here, weights_only=False)

    def _here(self, storage: Any, location: str) -> Any:
        """What was on another process's GPU comes to this one's; the rest stays in memory."""
        return storage if location == "cpu" else storage.to(device=self.device)


def _packed(value: object) -> bytes:
    """As `torch.save` does, because pickle would write the whole storage of every view."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters in their order, as many at a time as BUCKET allows."""
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and size + parameter.numel() > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel()
    if bucket:
        yield bucket
