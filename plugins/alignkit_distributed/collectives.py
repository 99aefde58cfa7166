"""The collectives of several processes: what they exchange goes through accelerate's collectives."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate.utils import gather_object, reduce
from torch import Tensor, nn

from alignkit.errors import AlignkitError, message_of
from alignkit.stopping import Stopped
from alignkit.training.collectives import Collectives

if TYPE_CHECKING:
    from alignkit.models.memory import Passes
    from alignkit.models.models import LoadedBase

T = TypeVar("T")
BUCKET = 2**27  # numbers that are added at once: 512 MB in fp32


class OtherFailed(AlignkitError):
    """Another process of the run has failed, and this one ends with it."""

    def __init__(self, text: str, exit_code: int = 1):
        super().__init__(text)
        self.exit_code = exit_code


class ProcessCollectives(Collectives):
    """One of several processes."""

    def __init__(self, process: int, processes: int, device: torch.device):
        self.process, self.processes, self.device = process, processes, device

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The block waits for the other processes. Raises OtherFailed if the connection to one is lost."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            text = (
                f"another process of the run has ended, and its launcher says why ({str(error).splitlines()[0]:.200})"
            )
            raise OtherFailed(text) from None

    def passes_of(self, base: str, service: LoadedBase, sharing: Callable[[], bool]) -> Passes:
        """How passes through a base model begin and end. sharing: whether all processes take part in them."""
        return service.model.passes

    def gather(self, mine: T) -> list[T]:
        content = _packed(mine)
        with self.waiting():
            found: list[bytes] = gather_object([content])
        return [mine if process == self.process else self._unpacked(post) for process, post in enumerate(found)]

    def on_rank0(self, work: Callable[[], T]) -> T:
        """As for all reducers. If the work fails, it ends so in every process."""
        value, ends = None, []
        if self.process == 0:
            try:
                value = work()
            except Exception as error:
                ends.append(error)
        self.together(ends)
        return self.gather(value)[0]  # type: ignore[return-value]

    def map_sharded(
        self, sizes: Sequence[int], work: Callable[[Sequence[int]], Sequence[T]], led: bool = False
    ) -> list[T]:
        """As for all reducers. If the work of a process fails or is stopped, it ends so in every process."""
        ends: list[BaseException] = []

        def mine(own: Sequence[int]) -> Sequence[T]:
            try:
                return work(own)
            except Exception as error:
                ends.append(error)
                return []

        own = self.partition(sizes, led)[self.process]
        done = mine(own) if own else []
        self.together(ends)
        return super().map_sharded(sizes, lambda share: done, led)

    def together(self, ends: Sequence[BaseException]) -> None:
        """Raise in every process what has ended the work of one: its own error where it happened."""
        own = ends[0] if ends else None
        facts = (isinstance(own, Stopped), message_of(own), getattr(own, "exit_code", 1)) if own else None
        everyone = self.gather(facts)
        if own is not None and not isinstance(own, Stopped):
            raise own
        failed = [(process, fact) for process, fact in enumerate(everyone) if fact is not None]
        for process, (stopped, message, code) in failed:
            if not stopped:
                raise OtherFailed(f"in process {process}: {message.removeprefix('error: ')}", code)
        for _, (_, message, _) in failed:
            raise Stopped(message.removeprefix("error: "))

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Let each parameter's gradient be the sum over processes, in fp32. One that no process has stays None."""
        parameters = list(parameters)
        present = [any(has) for has in zip(*self.gather([p.grad is not None for p in parameters]), strict=True)]
        for bucket in _buckets([p for p, has in zip(parameters, present, strict=True) if has]):
            flat = torch.cat([_gradient(parameter).flatten().float() for parameter in bucket])
            with self.waiting():
                total = reduce(flat, reduction="sum")
            for parameter, part in zip(bucket, total.split([p.numel() for p in bucket]), strict=True):
                parameter.grad = part.view_as(parameter).to(parameter.dtype)

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
