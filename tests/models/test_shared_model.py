"""The shared model's context, and a network without its numbers that is made of it again."""

from __future__ import annotations

from pathlib import Path

import torch
from architectures import load, make
from tiny import tiny_model
from torch import nn
from transformers import Phi3Config

from alignkit_plugins.processes.sharded_forward import filled, skeleton


def test_the_context_ends_where_positions_would_change_for_a_whole_row(tmp_path: Path) -> None:
    """Transformers chooses Phi-3's short or long factors by the longest position in the whole
    row.
    """
    rope = {"rope_type": "longrope", "rope_theta": 1e4}
    rope |= {"short_factor": [1.0] * 48, "long_factor": [4.0] * 48}
    policy = load(make(tmp_path / "llama", "Llama"))
    assert policy.context_length == policy.model.config.max_position_embeddings
    policy.model.config = Phi3Config(
        max_position_embeddings=64, original_max_position_embeddings=16, rope_parameters=rope
    )
    assert policy.context_length == 16


def test_a_new_adapter_lets_others_learn_on(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    model.add_role("one")
    learning = model.make_trainable("one").values()
    model.add_role("two")
    assert learning and all(parameter.requires_grad for parameter in learning)
    assert not any(parameter.requires_grad for parameter in model.parameters_of("two").values())


def test_a_head_that_begins_as_another_learns_alone(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    first = model.add_role("one", head="scalar")
    first.pad_token_id = 7
    second = model.add_role("two", start="one", head="scalar")
    assert torch.equal(first.head, second.head) and second.pad_token_id == 7
    first.head.data += 1
    assert not torch.equal(first.head, second.head)
    model.add_head("value", "one")
    model.drop_role("value")
    assert len(model.parameters_of("one")) > 1 and model.backbone_role("one") == "one"


def test_a_skeleton_has_no_numbers_and_can_be_filled() -> None:
    """Tied weights stay tied, buffers are kept, and neither copy shares memory with the network."""
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    network[1].weight = network[0].weight
    bones = skeleton(network)
    assert {parameter.device.type for parameter in bones.parameters()} == {"meta"}
    weights = {name: parameter.detach() + 1 for name, parameter in network.named_parameters()}
    made = filled(bones, weights)
    assert made[0].weight is made[1].weight and made[0].weight is not network[0].weight
    torch.testing.assert_close(dict(made.named_parameters()), weights)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 1
    x = torch.randn(2, 3)
    assert torch.equal(made(x), network(x))
