"""A network of which every process holds a part, by FSDP2."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.models.passes import last_states
from alignkit_distributed.network_parts import NetworkInParts, layers_of

STATES = "alignkit_states"  # the method of the network that FSDP treats as its forward pass
# Processes that join a pass reach fewer weights, but must send as many gradients; older versions of torch cannot.
UNUSED = "set_reduce_scatter_unused_params"


class ShardedNetwork(NetworkInParts):
    """Cut by torch's `fully_shard`. adapters: parameters that stay whole.

    Gradients of the others are cut, too: each process has its part of their sums over processes.
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
                part.set_gradient_divide_factor(1.0)  # a sum, because losses are divided by what all processes count
                part.set_force_sum_reduction_for_comms(True)
            getattr(network, UNUSED)(True)

    @property
    def whole(self) -> bool:
        """It is asked, because saving and loading adapters cuts the layers again."""
        from torch.distributed.tensor import DTensor

        return not any(isinstance(parameter, DTensor) for parameter in self.layers[0].parameters())

    def states(self, tokens: Tensor, positions: Tensor) -> Tensor:
        found: Tensor = getattr(self.network, STATES)(tokens, positions)
        return found

    def unshard(self) -> None:
        for part in self.layers:
            part.set_reshard_after_forward(False, recurse=False)
        for part in (self.network, *self.layers):  # each comes through a buffer, so the largest first
            part.unshard()

    def reshard(self) -> None:
        for part in self.layers:
            part.set_reshard_after_forward(True, recurse=False)
        for part in (*self.layers, self.network):
            part.reshard()


def can_learn() -> bool:
    """Whether this version of torch cuts weights that learn."""
    from torch.distributed.fsdp import FSDPModule

    return hasattr(FSDPModule, UNUSED)
