"""A network without its numbers, and the network that is made of it again."""

from __future__ import annotations

import torch
from torch import nn

from alignkit_plugins.processes.sharded_forward import filled, skeleton


def test_a_skeleton_has_no_numbers_and_can_be_filled() -> None:
    """Tied weights stay tied, buffers are kept, and neither copy shares memory with the network."""
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    network[1].weight = network[0].weight
    bones = skeleton(network)
    assert {parameter.device.type for parameter in bones.parameters()} == {"meta"}
    weights = {name: parameter.detach() + 1 for name, parameter in network.named_parameters()}
    made = filled(bones, weights)
    assert made[0].weight is made[1].weight and made[0].weight is not network[0].weight
    assert all(torch.equal(parameter, weights[name]) for name, parameter in made.named_parameters())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 1
    x = torch.randn(2, 3)
    assert torch.equal(made(x), network(x))
