"""Processes that pass through a base model in step, because each holds only a part of its weights.

Rows are dealt unevenly, so processes need different numbers of passes. But the weights of a layer are brought together
by all of them at once. Therefore each announces its next pass, and the others join with a row of one token, whose
gradients are zero, until all are where they exchange results.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed import DistError

from alignkit.errors import RunFailed
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.layout import GroupSpan
from alignkit.models.parts import Cut, NetworkInParts, layers_of
from alignkit.models.passes import Passes
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.processes.reducer import ProcessReducer

T = TypeVar("T")
LOST = ("gloo", "NCCL", "Connection closed")  # in errors of a lost connection, which have no type of their own


class Kind(IntEnum):
    """What a process is about to do, in the order in which it is done if processes differ."""

    GATHER = 0
    READ = 1
    LEARN = 2
    BACKWARD = 3


@dataclass(frozen=True, order=True)
class Call:
    """The next pass of a process: through which base model, and with which role's adapter if it learns."""

    kind: Kind
    base: str
    role: str = ""


class LockstepReducer(ProcessReducer):
    """One of several processes that hold a part of each base model. passes: those of the models that are loaded."""

    def __init__(
        self,
        process: int,
        processes: int,
        device: torch.device,
        waiting: Callable[[], Iterator[None]],
        cut: Cut,
    ):
        """cut: how the models are cut."""
        super().__init__(process, processes, device, waiting)
        self.cut = cut
        self.passes: weakref.WeakValueDictionary[str, LockstepPasses] = weakref.WeakValueDictionary()
        self._broken: Exception | None = None

    def gather(self, mine: T) -> list[T]:
        self._settle()
        return super().gather(mine)

    def led(self, work: Callable[[], T]) -> T:
        self._settle()  # before, because saving an adapter cuts the layers in this process alone
        return super().led(work)

    def passes_of(self, base: str, model: SharedModel, sharing: Callable[[], bool]) -> Passes:
        return LockstepPasses(base, model, self, sharing)

    def announce(self, call: Call) -> None:
        """Wait until all processes are ready for a pass."""
        while (first := min(self._announced(call))) != call:
            self._join(first)

    def in_step(self, run: Callable[[], T]) -> T:
        """`run()`, in which all processes wait for each other at every layer.

        An error in it cannot be undone: the others wait in the middle of a pass. So the run ends with it.
        """
        try:
            return self._waiting_in(run)
        except Exception as error:
            self._broken = error
            raise

    def _waiting_in(self, run: Callable[[], T]) -> T:
        with self._waiting():
            try:
                return run()
            except Exception as error:
                if isinstance(error, DistError) or any(word in str(error) for word in LOST):
                    raise
                own = error
        raise own  # outside, where it does not count as the failure of another process

    def _settle(self) -> None:
        """Join the passes of the others until all are here. Then each holds its own part only."""
        while calls := self._announced(None):
            self._join(min(calls))
        for passes in self.passes.values():
            passes.settle()

    def _announced(self, call: Call | None) -> list[Call]:
        if self._broken is not None:
            raise self._broken
        found = super().gather(call)
        return [each for each in found if each is not None]

    def _join(self, call: Call) -> None:
        self.passes[call.base].join(call)


class LockstepPasses(Passes):
    """Passes through one base model, which is cut at the first of them. sharing: whether all processes take part."""

    def __init__(self, name: str, model: SharedModel, reducer: LockstepReducer, sharing: Callable[[], bool]):
        """Raises RunFailed if the model cannot be cut."""
        _check(model)
        self.name, self.model, self.reducer, self._sharing = name, model, reducer, sharing
        self._sharded: NetworkInParts | None = None
        self._hidden: list[Tensor] = []  # of the passes since the last backward, in the same order in every process
        reducer.passes[name] = self

    @property
    def spread(self) -> bool:
        return self._sharded is not None

    def forward(self, role: str, run: Callable[[], Tensor]) -> Tensor:
        if self._local:
            return run()
        learns = torch.is_grad_enabled()
        self.reducer.announce(Call(Kind.LEARN, self.name, role) if learns else Call(Kind.READ, self.name))
        return self._passed(run)

    def states(self, network: Any, tokens: Tensor, positions: Tensor) -> Tensor:
        if self._sharded is None:
            return super().states(network, tokens, positions)
        return self._sharded.states(tokens, positions)

    def backward(self, loss: Tensor) -> None:
        if not self._hidden:
            loss.backward()
            return
        self.reducer.announce(Call(Kind.BACKWARD, self.name))
        self._learn(loss)

    def gather(self) -> None:
        if not self._local:
            self.reducer.announce(Call(Kind.GATHER, self.name))
            self._gather()

    def join(self, call: Call) -> None:
        """Do what another process needs for its pass."""
        if call.kind == Kind.GATHER:
            self._gather()
        elif call.kind == Kind.BACKWARD:
            self._learn(torch.zeros((), device=self.model.device))
        else:
            learns = call.kind == Kind.LEARN
            with torch.set_grad_enabled(learns):
                self._passed(lambda: self._blank(call.role if learns else BASE))

    def settle(self) -> None:
        """All processes exchange results, and need no more than their parts."""
        self._hidden.clear()
        if self._sharded is not None:
            self._sharded.reshard()

    @property
    def _local(self) -> bool:
        """Whether this process needs no other: it works alone, or holds everything."""
        return not self._sharing() or (self._sharded is not None and self._sharded.whole)

    def _network(self) -> NetworkInParts:
        """The network in parts, and nothing but this process's own part of it."""
        if self._sharded is None:
            _check(self.model)  # again, because adapters know their layers now
            adapters = self.model.adapters.everything() if self.model.adapters is not None else ()
            self.model.memory.fixed = True
            self._sharded = self.reducer.cut(self.model.model, adapters, self.model.device)
            with torch.no_grad():  # FSDP takes what computes first for the whole network
                self.reducer.in_step(lambda: self._blank(BASE))
        self._sharded.reshard()
        return self._sharded

    def _passed(self, run: Callable[[], Tensor]) -> Tensor:
        self._network()
        hidden = self.reducer.in_step(run)
        if hidden.requires_grad:
            self._hidden.append(hidden)
        return hidden

    def _blank(self, role: str) -> Tensor:
        """A pass over one token."""
        layout = TreeLayout([GroupSpan(0, 1, ())])
        return self.model.hidden_packed(role, layout, torch.zeros(1, dtype=torch.int64))

    def _learn(self, loss: Tensor) -> None:
        hidden, self._hidden = self._hidden, []
        if hidden:
            loss = loss + _Zero.apply(*hidden).to(loss.dtype)
        if loss.requires_grad:
            self.reducer.in_step(loss.backward)

    def _gather(self) -> None:
        self.reducer.in_step(self._network().unshard)


def _check(model: SharedModel) -> None:
    """Raise RunFailed if a model cannot be cut."""
    why = ""
    if not model.packs:
        why = f"its rows are not packed ({model.unpacked_because})"
    elif not any(layers_of(model.model)):
        why = f"it is not known which modules of a {type(model.model).__name__} are layers"
    elif model.adapters is not None and model.adapters.on_stacks:
        why = "its stacked experts have adapters, which are merged with them in every pass"
    if why:
        text = f"'launcher.shard': the base model {model.spec.base} cannot be cut into parts, because {why}"
        raise RunFailed(f"{text}\nhelp: leave 'shard' out")


class _Zero(torch.autograd.Function):
    """0 with gradients of 0, so that every pass is gone through backward, whether a loss depends on it or not."""

    @staticmethod
    def forward(ctx: Any, *hidden: Tensor) -> Tensor:
        ctx.save_for_backward(*hidden)
        return hidden[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.zeros_like(hidden) for hidden in ctx.saved_tensors)
