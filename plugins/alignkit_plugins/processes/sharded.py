"""A network of which every process holds a part, by FSDP2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from alignkit.models.memory import last_states

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
        from torch.distributed.tensor import DTensor

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
