"""When weights are brought together and freed, with a stand-in for DeepSpeed in one process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import LlamaConfig, LlamaForCausalLM

from alignkit.models import zero3
from alignkit.models.passes import last_states
from alignkit.models.zero3 import Zero3Network

TOKENS, POSITIONS = torch.arange(6)[None], torch.arange(6)[None]


class Zero:
    """DeepSpeed's module: keeps weights elsewhere, and notes how many are here."""

    def __init__(self) -> None:
        self.kept: dict[int, Tensor] = {}
        self.here = self.most = 0
        self.storages: list[StorageWeakRef] = []  # of all that were here

    def Init(self, module: nn.Module, mem_efficient_linear: bool) -> None:
        for weight in module.parameters():
            self.kept[id(weight)] = weight.data
            weight.data = torch.empty(0)

    @contextmanager
    def GatheredParameters(self, weights: Sequence[nn.Parameter]) -> Iterator[None]:
        for weight in weights:
            assert not weight.numel(), "DeepSpeed brings no weight twice"
            weight.data = self.kept[id(weight)].clone()
            self.storages.append(StorageWeakRef(weight.untyped_storage()))
        self.here += len(weights)
        self.most = max(self.most, self.here)
        yield
        self.here -= len(weights)
        for weight in weights:
            weight.data = torch.empty(0)

    @property
    def alive(self) -> int:
        """Weights whose memory is not free."""
        return sum(not storage.expired() for storage in self.storages)


@pytest.fixture
def zero(monkeypatch: pytest.MonkeyPatch) -> Zero:
    found = Zero()
    monkeypatch.setattr(zero3, "_deepspeed", lambda device: SimpleNamespace(zero=found))
    return found


def network() -> Any:
    """Three frozen layers, whose biases are trained."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 3}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, attention_bias=True, **sizes))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("bias" in name)
    return model


def adapters(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def test_a_cut_network_computes_the_same_and_keeps_no_weights_for_backward(zero: Zero) -> None:
    """Two passes before one backward pass, as with two rows in a step."""
    whole, ours = network(), network()
    cut = Zero3Network(ours, adapters(ours), torch.device("cpu"))
    layer, rest = sum(1 for p in whole.model.layers[0].parameters() if not p.requires_grad), 3
    expected = [last_states(whole, tokens, POSITIONS) for tokens in (TOKENS, TOKENS + 3)]
    states = []
    for tokens in (TOKENS, TOKENS + 3):
        cut.reshard()
        assert zero.alive == 0
        states.append(cut.states(tokens, POSITIONS))
        assert zero.here == zero.alive == rest, "embeddings, norm and head are here, and no layer is"
    assert torch.equal(torch.cat(states), torch.cat(expected))
    torch.cat(expected).square().sum().backward()
    torch.cat(states).square().sum().backward()
    assert zero.most == rest + layer
    cut.reshard()
    assert zero.alive == 0
    for ours_, theirs in zip(adapters(ours), adapters(whole), strict=True):
        assert ours_.grad is not None and torch.equal(ours_.grad, theirs.grad)


def test_the_whole_network_is_here_until_results_are_exchanged(zero: Zero) -> None:
    ours = network()
    cut = Zero3Network(ours, adapters(ours), torch.device("cpu"))
    cut.unshard()
    assert cut.whole and zero.here == len(zero.kept)
    with torch.no_grad():
        expected = last_states(network(), TOKENS, POSITIONS)
        assert torch.equal(last_states(ours, TOKENS, POSITIONS), expected)
    assert zero.here == len(zero.kept)
    cut.reshard()
    assert not cut.whole and zero.alive == 0
