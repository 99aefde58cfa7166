"""Processes that pass through networks in step, because each holds only a part of their weights.

Groups are dealt unevenly, so processes need different numbers of passes, but all must bring the
weights of a layer together at once. Therefore each announces its next pass, and the others join
with a pack of one token, whose gradients are zero, until all are where they exchange results.

Adapters stay whole in every process. With `lora: none` each role has a network of its own, which is
cut with its gradients and with what the optimizer remembers of it.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from alignkit.errors import RunFailed
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.layout import GroupSpan
from alignkit.models.memory import Passes, last_states
from alignkit.models.shared_model import UNMODIFIED, SharedModel
from alignkit_plugins.processes.collectives import ProcessCollectives

if TYPE_CHECKING:
    from alignkit.models.models import LoadedModel


T = TypeVar("T")


STATES = "alignkit_states"  # the method of the network that FSDP treats as its forward pass
# Processes that join a pass reach fewer weights, but must send as many gradients; older versions of
# torch cannot.
UNUSED = "set_reduce_scatter_unused_params"


class ShardedNetwork:
    """A language model of which each process of a run holds a part. All of them call each method
    together.

    A layer is whole only while it computes. Embeddings, head and norms are one part; they stay
    whole after a pass, because the head reads them outside of it. adapters: parameters that stay
    whole. Gradients of the others are cut, too: each process has its part of their sums over
    processes.
    """

    def __init__(self, network: Any, adapters: Iterable[nn.Parameter], device: torch.device):
        from torch.distributed import get_world_size, init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        self.network, self.layers = network, list(layers_of(network))
        mesh, whole = init_device_mesh(device.type, (get_world_size(),)), set(adapters)
        for layer in self.layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
        fully_shard(network, mesh=mesh, reshard_after_forward=False, ignored_params=whole)
        setattr(network, STATES, partial(last_states, network))
        register_fsdp_forward_method(network, STATES)
        if any(parameter.requires_grad for parameter in set(network.parameters()) - whole):
            for part in (*self.layers, network):
                # A sum, because losses are divided by what all processes count
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)
            getattr(network, UNUSED)(True)

    @property
    def whole(self) -> bool:
        """Whether this process holds all layers. It is asked, because saving and loading adapters
        cuts them again.
        """
        return not any(isinstance(parameter, DTensor) for parameter in self.layers[0].parameters())

    def states(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The last hidden states [1, tokens, hidden] of tokens at positions, both [1, tokens]."""
        found: Tensor = getattr(self.network, STATES)(tokens, positions)
        return found

    def unshard(self) -> None:
        """Bring all parts here, until `reshard`."""
        for part in self.layers:
            part.set_reshard_after_forward(False, recurse=False)
        # Each comes through a buffer, so the largest first
        for part in (self.network, *self.layers):
            part.unshard()

    def reshard(self) -> None:
        """Free what belongs to other processes. Sends nothing."""
        for part in self.layers:
            part.set_reshard_after_forward(True, recurse=False)
        for part in (*self.layers, self.network):
            part.reshard()


def layers_of(module: nn.Module) -> Iterator[Any]:
    """The outermost layers, in their order."""
    for child in module.children():
        if isinstance(child, GradientCheckpointingLayer):
            yield child
        else:
            yield from layers_of(child)


def can_learn() -> bool:
    """Whether this version of torch cuts weights that learn."""
    from torch.distributed.fsdp import FSDPModule

    return hasattr(FSDPModule, UNUSED)


class Kind(IntEnum):
    """What a process is about to do, in the order in which it is done if processes differ."""

    GATHER = 0
    READ = 1
    LEARN = 2
    BACKWARD = 3


@dataclass(frozen=True, order=True)
class Call:
    """The next pass of a process. model: as `LoadedModel.name` has it. role: empty if its adapter or network
    does not matter.
    """

    kind: Kind
    model: str
    role: str = ""


class LockstepCollectives(ProcessCollectives):
    """One of several processes that hold a part of each base model. passes: those of the models
    that are loaded.
    """

    def __init__(self, process: int, processes: int, device: torch.device):
        super().__init__(process, processes, device)
        self._broken: Exception | None = None
        self.passes: weakref.WeakValueDictionary[str, LockstepPasses] = (
            weakref.WeakValueDictionary()
        )

    def gather(self, mine: T) -> list[T]:
        self.settle()
        return super().gather(mine)

    def on_main_process(self, work: Callable[[], T]) -> T:
        self.settle()  # before, because saving an adapter cuts the layers in this process alone
        return super().on_main_process(work)

    # Parameters that are cut, which FSDP has made `DTensor`s

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Leaves out parameters that are cut: FSDP adds up their gradients in each backward pass."""
        super().add_gradients([p for p in parameters if not isinstance(p, DTensor)])

    def clip(self, parameters: Iterable[nn.Parameter], most: float) -> float:
        gradients = [(p, p.grad) for p in parameters if p.grad is not None]
        cut = [g.to_local() for _, g in gradients if isinstance(g, DTensor)]
        if not cut:
            return super().clip([p for p, _ in gradients], most)
        whole = [g for _, g in gradients if not isinstance(g, DTensor)]
        squares = self.sum({"": float(torch.nn.utils.get_total_norm(cut)) ** 2})[""]
        norm = math.sqrt(squares + float(torch.nn.utils.get_total_norm(whole)) ** 2)
        for gradient in (*whole, *cut):
            gradient.mul_(min(1.0, most / (norm + 1e-6)))  # as torch does it
        return norm

    def whole(self, tensor: Tensor) -> Tensor:
        """All of a tensor, in the memory of process 0; an empty one in the others if it is cut."""
        if not isinstance(tensor, DTensor):
            return tensor
        with torch.no_grad():
            found = self.in_step(tensor.full_tensor)
        return found.cpu() if self.process == 0 else found.new_empty(0)

    def part(self, whole: Tensor, parameter: nn.Parameter) -> Tensor:
        if not isinstance(parameter, DTensor) or whole.shape != parameter.shape:
            return super().part(whole, parameter)
        mesh, placements = parameter.device_mesh, parameter.placements
        return distribute_tensor(whole.to(parameter.device), mesh, placements, src_data_rank=None)

    # Passes

    def passes_of(self, name: str, loaded: LoadedModel) -> Passes:
        return LockstepPasses(name, loaded, self)

    def announce(self, call: Call) -> None:
        """Wait until all processes are ready for a pass."""
        while (first := min(self._announced(call))) != call:
            self._join(first)

    def in_step(self, run: Callable[[], T]) -> T:
        """`run()`, in which all processes wait for each other at every layer.

        An error in it cannot be undone, and none of them can hear of it: they wait in the middle of
        a pass. So the run ends with it.
        """
        self.lost = True
        try:
            with self.waiting():
                result = run()
        except Exception as error:
            self._broken = error
            raise
        self.lost = False
        return result

    def settle(self) -> None:
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
        self.passes[call.model].join(call)


class LockstepPasses(Passes):
    """Passes through one base model, which is cut at the first of them, or through its roles' own
    networks.
    """

    def __init__(self, name: str, loaded: LoadedModel, collectives: LockstepCollectives):
        """Raises RunFailed if the model cannot be cut."""
        _check(loaded.model)
        self.name, self.model, self.collectives = name, loaded.model, collectives
        self._role = loaded.role
        self._parts: dict[Any, ShardedNetwork] = {}  # by network
        self._skeletons: dict[Any, Any] = {}  # by network that learns
        # Outputs of the passes since the last backward, in the same order in every process
        self._hidden: list[Tensor] = []
        collectives.passes[name] = self

    @property
    def holds_part(self) -> bool:
        return bool(self._parts)

    def learns(self, role: str) -> None:
        if self.model.adapters is None and self.collectives.sharing:
            network = self.model.roles[role].model
            if network not in self._skeletons:
                self._skeletons[network] = skeleton(network)
            self._network(role)

    def forward(self, role: str, run: Callable[[], Tensor]) -> Tensor:
        if self._local(role):
            return run()
        self.collectives.announce(
            self._call(Kind.LEARN if torch.is_grad_enabled() else Kind.READ, role)
        )
        return self._passed(role, run)

    def states(self, network: Any, tokens: Tensor, positions: Tensor) -> Tensor:
        if network not in self._parts:
            return super().states(network, tokens, positions)
        return self._parts[network].states(tokens, positions)

    def backward(self, loss: Tensor) -> None:
        if not self._hidden:
            loss.backward()
            return
        self.collectives.announce(Call(Kind.BACKWARD, self.name))
        self._learn(loss)

    def gather(self, role: str) -> None:
        if not self._local(role):
            self.collectives.announce(self._call(Kind.GATHER, role))
            self._gather(role)

    def copied(self, role: str) -> Any:
        network = self.model.roles[role].model
        if network not in self._skeletons:
            return None
        self.collectives.settle()
        weights = {
            name: self.collectives.whole(weight) for name, weight in network.named_parameters()
        }
        return filled(self._skeletons[network], weights) if self.collectives.process == 0 else None

    def join(self, call: Call) -> None:
        """Do what another process needs for its pass."""
        role = call.role or UNMODIFIED
        # A process with no response for a reward model has not loaded it
        self._role(role.replace("|", "/"))
        if call.kind == Kind.GATHER:
            self._gather(role)
        elif call.kind == Kind.BACKWARD:
            self._learn(torch.zeros((), device=self.model.device))
        else:
            with torch.set_grad_enabled(call.kind == Kind.LEARN):
                self._passed(role, lambda: self._blank(role))

    def settle(self) -> None:
        """All processes exchange results, and need no more than their parts."""
        self._hidden.clear()
        for parts in self._parts.values():
            parts.reshard()

    def _local(self, role: str) -> bool:
        """Whether this process needs no other: it works alone, or holds everything."""
        parts = self._parts.get(self.model.roles[role].model)
        return not self.collectives.sharing or (parts is not None and parts.whole)

    def _call(self, kind: Kind, role: str) -> Call:
        """Processes may read by different adapters in one pass, but learn by the same one."""
        return Call(
            kind, self.name, role if kind == Kind.LEARN or self.model.adapters is None else ""
        )

    def _network(self, role: str) -> ShardedNetwork:
        """The network in parts, and nothing but this process's own part of it."""
        network = self.model.roles[role].model
        if network not in self._parts:
            if (
                self.model.adapters is None
                and self.model.model not in self._parts
                and role != UNMODIFIED
            ):
                # Other networks are copies of it, and nothing else may pass through it.
                self._network(UNMODIFIED)
            adapters = [weight for name, weight in network.named_parameters() if ".lora_" in name]
            self.model.memory.fixed = True
            # In step, because a process that cuts slowly is not hung.
            self._parts[network] = self.collectives.in_step(
                lambda: ShardedNetwork(network, adapters, self.model.device)
            )
            with torch.no_grad():  # FSDP takes what computes first for the whole network
                self.collectives.in_step(lambda: self._blank(role))
        self._parts[network].reshard()
        return self._parts[network]

    def _passed(self, role: str, run: Callable[[], Tensor]) -> Tensor:
        self._network(role)
        hidden = self.collectives.in_step(run)
        if hidden.requires_grad:
            self._hidden.append(hidden)
        return hidden

    def _blank(self, role: str) -> Tensor:
        """A pass over one token."""
        zero = torch.zeros(1, 1, dtype=torch.int64, device=self.model.device)
        with self.model.using_role(role, TreeLayout([GroupSpan(0, 1, ())])) as network:
            return self.states(network, zero, zero)

    def _learn(self, loss: Tensor) -> None:
        hidden, self._hidden = self._hidden, []
        if hidden:
            loss = loss + _Zero.apply(*hidden).to(loss.dtype)
        if loss.requires_grad:
            self.collectives.in_step(loss.backward)

    def _gather(self, role: str) -> None:
        self.collectives.in_step(self._network(role).unshard)


def _check(model: SharedModel) -> None:
    """Raise RunFailed if a model cannot be cut."""
    why = ""
    if not model.packs:
        why = f"its sequences are not packed ({model.unpacked_because})"
    elif not any(layers_of(model.model)):
        why = f"it is not known which modules of a {type(model.model).__name__} are layers"
    if why:
        text = (
            f"--use_fsdp: the base model {model.spec.base} cannot be cut into parts, because {why}"
        )
        raise RunFailed(f"{text}\nhelp: start the run without --use_fsdp")


class _Zero(torch.autograd.Function):
    """0 with gradients of 0, so that every pass is gone through backward, whether a loss depends on
    it or not.
    """

    @staticmethod
    def forward(ctx: Any, *hidden: Tensor) -> Tensor:
        ctx.save_for_backward(*hidden)
        return hidden[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.zeros_like, ctx.saved_tensors))


# A network without its numbers, from which it can be made again


def skeleton(network: Any) -> Any:
    """A copy of a network whose parameters have a shape and a dtype, but no numbers."""
    return _with(network, lambda name, p: torch.empty_like(p, device="meta"))


def filled(bones: Any, weights: Mapping[str, Tensor]) -> Any:
    """A copy of a skeleton with these parameters, by name."""
    return _with(bones, lambda name, p: weights[name])


def _with(network: Any, tensor: Any) -> Any:
    """A copy with other tensors as parameters; those that are tied stay tied."""
    new = {
        id(p): nn.Parameter(tensor(name, p), requires_grad=False)
        for name, p in network.named_parameters()
    }
    return copy.deepcopy(network, new)
