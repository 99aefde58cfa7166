"""Numbers over a whole batch, of which each process computes only its share.

All processes of a run execute the same code with the same rows. What takes long is dealt to them:
samples, scores, measurements, and gradients. The results of all are gathered before anything is
decided, so that every process makes the same decisions, and whitening, baselines, selections and
controllers of plugins see the whole batch without knowing of other processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")
Key = TypeVar("Key")


class Collectives:
    """The only process of a run: everything is its own, and nothing is sent.

    For several processes, a subclass sets `process` and `processes` and overrides `gather`,
    `on_main_process`, `should_stop`, `compare`, `fail` and `add_gradients`. All processes call these
    methods in the same order, because each waits for the others. sharing: whether all of them
    compute together, or the first one alone.
    """

    process = 0
    processes = 1
    sharing = False

    def partition(self, sizes: Sequence[int], main_only: bool = False) -> list[list[int]]:
        """The indices of each process's entries. The largest are dealt first, each to the process
        with the least.

        main_only: all are the first process's, which alone has what the work needs, such as an engine.
        """
        shares: list[list[int]] = [[] for _ in range(self.processes)]
        if main_only:
            return [list(range(len(sizes))), *shares[1:]]
        loads = [0] * self.processes
        for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
            least = loads.index(min(loads))
            shares[least].append(index)
            loads[least] += sizes[index]
        return list(map(sorted, shares))

    def gather(self, mine: T) -> list[T]:
        """What every process passes, in the order of processes. Tensors arrive on the device of the
        receiver.
        """
        return [mine]

    def on_main_process(self, work: Callable[[], T]) -> T:
        """What the work of the first process returns; the others wait for it, and fail as it does.
        It writes files.
        """
        return work()

    def should_stop(self, check: Callable[[], None]) -> None:
        """Raise Stopped in every process if `check` does in one."""
        check()

    def compare(self, what: str, facts: Callable[[], Mapping[str, Any]]) -> None:
        """Raise RunFailed in every process if facts about `what` are not alike in all of them."""

    def fail(self, error: BaseException) -> None:
        """Let the others end with the error that ends this process."""

    def close(self) -> None:
        """End the connections to the other processes at the end of a run."""

    def passes_of(self, name: str, loaded: Any) -> Any:
        """How passes through a model begin and end. name: as `LoadedModel` has it."""
        return loaded.model.passes

    def map_sharded(
        self,
        sizes: Sequence[int],
        work: Callable[[Sequence[int]], Sequence[T]],
        main_only: bool = False,
    ) -> list[T]:
        """Results for all entries, in their order, each computed by one process.

        sizes: the number of results of each entry. work: returns those of the entries with these
        indices. main_only: see `partition`.
        """
        shares = self.partition(sizes, main_only)
        mine = shares[self.process]
        results: list[list[T]] = [[] for _ in sizes]
        for share, found in zip(shares, self.gather(list(work(mine)) if mine else []), strict=True):
            computed = iter(found)
            for index in share:
                results[index] = list(islice(computed, sizes[index]))
        return [*chain.from_iterable(results)]

    def sum(self, values: Mapping[Key, float]) -> dict[Key, float]:
        """The sum over processes of each value; a process may lack some."""
        totals: dict[Key, float] = {}
        for part in self.gather(dict(values)):
            for key, value in part.items():
                totals[key] = totals.get(key, 0.0) + value
        return totals

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Let each parameter's gradient be the sum over processes. One that no process has stays
        None.
        """

    # Parameters of which each process may hold a part

    def clip(self, parameters: Iterable[nn.Parameter], most: float) -> float:
        """Scale gradients down to a norm of `most` over all of them; returns the norm before."""
        import torch

        return float(torch.nn.utils.clip_grad_norm_(parameters, most))

    def whole(self, tensor: Tensor) -> Tensor:
        """All of a tensor, in the first process; others may get an empty one. Shares memory if it
        is whole already.
        """
        return tensor

    def part(self, whole: Tensor, parameter: nn.Parameter) -> Tensor:
        """What this process holds of a tensor that is cut as a parameter of the same shape is, on
        its device.
        """
        return whole.to(parameter.device)


ONE_PROCESS = Collectives()
