"""The memory budget: when memory runs out, packs shrink and results stay the same, or the
error is reported.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_model, user
from torch import Tensor

from alignkit.contract.settings import LoraSpec, Settings
from alignkit.host.plugins import plugins
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.layout import GroupSpan
from alignkit.models import memory as budget
from alignkit.models.memory import CPU_ACTIVATIONS, LEAST_TOKENS, MemoryBudget
from alignkit.models.models import LoadedModel
from alignkit.models.packing import measure
from alignkit.models.shared_model import UNMODIFIED, SharedModel
from alignkit.training.learner import Learner
from tests.models.tiny import shared
from tests.test_train import encoded
from tests.training.test_optimizers import named

OUT_OF_MEMORY = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"


@pytest.fixture
def policy() -> SharedModel:
    return tiny_model()


@contextmanager
def memory_for(policy: SharedModel, tokens: int, pieces: int = 10**9) -> Iterator[list[int]]:
    """Let the policy run out of memory in packs of more than `tokens`, and once after `pieces` packs
    that fit.

    Yields the sizes of the packs that fit.
    """
    original, fitted, left = policy.hidden, [], [pieces]

    def hidden(role: str, layout: Any, ids: Tensor) -> Tensor:
        left[0] -= len(ids) <= tokens
        if len(ids) > tokens or left[0] == -1:
            raise RuntimeError(OUT_OF_MEMORY)
        fitted.append(len(ids))
        return original(role, layout, ids)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "hidden", hidden)
        yield fitted


def test_a_step_that_does_not_fit_is_repeated_in_smaller_pieces(policy: SharedModel) -> None:
    sft = plugins().get("algorithm", "sft").implementation
    settings = Settings(learning_rate=1e-3, optimizer=named("adamw", max_grad_norm=1e9))
    policy.add_role("new")
    work, data = Learner(policy, sft(sft.Options()), settings, "new"), encoded(policy, 40)
    before = policy.token_budget
    metrics = work._gradients(data)
    whole = {name: p.grad.clone() for name, p in work.parameters.items() if p.grad is not None}
    with memory_for(policy, 700, pieces=2) as fitted:
        again = work.step(data, 0.0)
    assert policy.token_budget <= 700 < before and policy.memory.halvings > 0
    assert again["token_budget"] == policy.token_budget and max(fitted) <= 700 and len(fitted) > 1
    # The gradients of the interrupted attempt must not be added to those of the second.
    gradients = {name: work.parameters[name].grad for name in whole}
    torch.testing.assert_close(gradients, whole, atol=1e-6, rtol=1e-5)
    assert again["nll"] == pytest.approx(metrics["nll"], abs=1e-6)


def measured(policy: SharedModel) -> Any:
    return measure(policy, UNMODIFIED, encoded(policy, 40).groups)["logprobs"]


def asked(policy: SharedModel) -> Any:
    prompts = [[user(f"how are you, {n}?")] for n in range(40)]
    return LoadedModel(policy, Path)[UNMODIFIED].next_token_logprobs(prompts, ["yes", "no"])


@pytest.mark.parametrize("what", [measured, asked])
def test_measuring_shrinks_too(what: Callable[[SharedModel], Any], policy: SharedModel) -> None:
    whole = what(policy)
    with memory_for(policy, 400):
        smaller = what(policy)
    torch.testing.assert_close(smaller, whole, atol=1e-5, rtol=1e-5)
    assert policy.memory.halvings > 0 and torch.cat(list(whole)).isfinite().all()


def test_memory_that_cannot_suffice_is_an_error(policy: SharedModel) -> None:
    with memory_for(policy, 5), pytest.raises(RuntimeError, match="can't allocate"):
        measured(policy)


def test_other_errors_are_not_retried(policy: SharedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Tensor:
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr(policy, "hidden", broken)
    with pytest.raises(RuntimeError, match="sizes do not match"):
        measured(policy)
    assert policy.memory.halvings == 0


def test_little_memory_makes_a_small_budget(
    policy: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "CPU_ACTIVATIONS", 2.0**26)
    most = policy.token_budget
    # A quarter of it may be taken; it is read from the device once
    for memory, tokens in ((2.0**27 + 1, most / 2), (1.0, LEAST_TOKENS)):
        del policy.memory.activation_bytes
        for total in (memory, 2.0**40):
            monkeypatch.setattr(budget, "total", lambda device, total=total: total)
            assert policy.token_budget == pytest.approx(tokens, abs=1)


def test_a_quarter_of_a_gpu_is_for_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6 * 2**30, 80 * 2**30))
    assert MemoryBudget(torch.device("cuda"), 1).activation_bytes == 16 * 2**30
    assert 0 < MemoryBudget(torch.device("cpu"), 1).activation_bytes <= CPU_ACTIVATIONS
    few, many = (MemoryBudget(torch.device("cuda"), 2**power) for power in (30, 20))
    assert (few.tokens, many.tokens) == (512, 16384) and not many.must_recompute(20 * 1024)
    few.halvings, many.halvings = 9, 1
    assert (few.tokens, many.tokens) == (64, 8192)
    assert many.must_recompute(10 * 1024 + 1) and not many.must_recompute(10 * 1024)


def test_what_layers_store_for_each_token() -> None:
    """Their inner width is four times the outer one if the configuration names none."""
    config = SimpleNamespace(hidden_size=2, num_hidden_layers=3)
    stored = partial(budget.activation_bytes_per_token, config)
    assert stored(torch.float32, frozen=False) == 3 * (24 * 2 + 8 * 8) * 4
    assert stored(torch.bfloat16, frozen=True) == 3 * (16 * 2 + 4 * 8) * 2


def test_a_dropped_copy_of_the_model_is_freed(policy: SharedModel) -> None:
    """Without adapters a role is a model of its own, whose layers refer to themselves."""
    policy.adapters = None
    policy.add_role("copy", start=UNMODIFIED)
    left = weakref.ref(next(iter(policy.parameters_of("copy").values())))
    gc.disable()
    try:
        policy.drop_role("copy")
        assert left() is None
    finally:
        gc.enable()


def test_a_resumed_stage_packs_as_the_killed_one_did(
    policy: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = policy.memory
    memory.halvings, memory.sampling_halvings = 2, 1
    tokens, state = policy.token_budget, memory.state()
    memory.halvings, memory.sampling_halvings = 0, 0
    del memory.activation_bytes
    monkeypatch.setattr(budget, "total", lambda device: 1.0)
    memory.restore(state)
    assert policy.token_budget == tokens
    assert (memory.halvings, memory.sampling_halvings) == (2, 1)
    memory.halvings, memory.sampling_halvings, memory.fixed = 3, 4, True
    memory.restore(state)
    assert not memory.halve() and (memory.halvings, memory.sampling_halvings) == (3, 4)


def test_half_precision_stores_what_was_estimated() -> None:
    """Twice the truth would make micro-batches half as large as intended."""
    policy = shared(dtype="bfloat16", lora=LoraSpec(r=4, lora_alpha=8))
    policy.add_role("new")
    policy.make_trainable("new")
    weights = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    stored: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        alive.append(x)
        stored[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        policy.hidden("new", TreeLayout([GroupSpan(0, 512, ())]), torch.arange(512) % 300)
    found = sum(size for storage, size in stored.items() if storage not in weights)
    assert 0.9 * found < 512 * policy.memory.bytes_per_token < 1.6 * found
