"""The memory budget: when memory runs out, packed rows shrink and results stay the same, or the
error is reported.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch import Tensor

from alignkit import Group, Response
from alignkit.data.group import Message
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.layout import GroupSpan
from alignkit.models import memory as budget
from alignkit.models.memory import CPU_ACTIVATIONS, LEAST_TOKENS, MemoryBudget
from alignkit.models.models import LoadedBase
from alignkit.models.packing import Examples, measure
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.settings import LoraSpec, ModelSpec, Settings
from alignkit.tokens.encoder import Encoder
from alignkit.training.learner import Learner
from tests.training.test_optimizers import named


@pytest.fixture
def policy(tmp_path: Path) -> SharedModel:
    return tiny_model(tmp_path)


def examples(policy: SharedModel) -> Examples:
    encoder = Encoder(policy.tokenizer)
    words = (
        "yes",
        "no, not at all, never, by no means",
        "perhaps",
        "I am well, thank you, and how are you today?",
    )
    groups = [
        Group(
            ({"role": "user", "content": f"how are you, {n}? " * (n % 3 + 1)},),
            (Response(text=words[n % 4]),),
            id=str(n),
        )
        for n in range(40)
    ]
    encoded = [encoder.encode(group, 512) for group in groups]
    return Examples([e for e in encoded if e is not None])


@contextmanager
def memory_for(policy: SharedModel, tokens: int, pieces: int = 10**9) -> Iterator[list[int]]:
    """Let the policy run out of memory in rows of more than `tokens`, and once after `pieces` rows
    that fit.

    Yields the sizes of the rows that fit.
    """
    original, fitted, left = policy.hidden, [], [pieces]

    def hidden(role: str, layout: Any, row: Tensor) -> Tensor:
        left[0] -= len(row) <= tokens
        if len(row) > tokens or left[0] == -1:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
            )
        fitted.append(len(row))
        return original(role, layout, row)

    policy.hidden = hidden  # type: ignore[method-assign]
    try:
        yield fitted
    finally:
        policy.hidden = original  # type: ignore[method-assign]


def learner(policy: SharedModel) -> Learner:
    from alignkit.plugins import plugins

    sft = plugins().get("algorithm", "sft").implementation
    policy.add_role("new")
    return Learner(
        policy,
        sft(sft.Options()),
        Settings(learning_rate=1e-3, optimizer=named("adamw", max_grad_norm=1e9)),
        "new",
    )


def test_a_step_that_does_not_fit_is_repeated_in_smaller_pieces(policy: SharedModel) -> None:
    work, data = learner(policy), examples(policy)
    before = policy.token_budget
    metrics = work._gradients(data)
    whole = {name: p.grad.clone() for name, p in work.parameters.items() if p.grad is not None}
    with memory_for(policy, 700, pieces=2) as fitted:
        again = work.step(data, 0.0)
    assert policy.token_budget <= 700 < before and policy.memory.halvings > 0
    assert again["token_budget"] == policy.token_budget and max(fitted) <= 700 and len(fitted) > 1
    # The gradients of the interrupted attempt must not be added to those of the second.
    for name, gradient in whole.items():
        torch.testing.assert_close(work.parameters[name].grad, gradient, atol=1e-6, rtol=1e-5)
    assert again["nll"] == pytest.approx(metrics["nll"], abs=1e-6)


def test_measuring_shrinks_too(policy: SharedModel) -> None:
    data = examples(policy)
    whole = measure(policy, BASE, data.groups)["logprobs"]
    with memory_for(policy, 700):
        smaller = measure(policy, BASE, data.groups)["logprobs"]
    for one, other in zip(whole, smaller, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_memory_that_cannot_suffice_is_an_error(policy: SharedModel) -> None:
    with memory_for(policy, 5), pytest.raises(RuntimeError, match="can't allocate"):
        measure(policy, BASE, examples(policy).groups)["logprobs"]


def test_other_errors_are_not_retried(policy: SharedModel) -> None:
    def broken(*_: Any) -> Tensor:
        raise RuntimeError("sizes do not match")

    policy.hidden = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="sizes do not match"):
        measure(policy, BASE, examples(policy).groups)["logprobs"]
    assert policy.memory.halvings == 0


def test_little_memory_makes_a_small_budget(
    policy: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "CPU_ACTIVATIONS", 2.0**26)
    most = policy.token_budget
    del policy.memory.activation_bytes
    monkeypatch.setattr(budget, "total", lambda device: 2.0**27 + 1)  # a quarter of it may be taken
    assert policy.token_budget > LEAST_TOKENS and policy.token_budget == pytest.approx(
        most / 2, abs=1
    )
    monkeypatch.setattr(budget, "total", lambda device: 1.0)
    assert policy.token_budget == pytest.approx(most / 2, abs=1)  # read from the device once
    del policy.memory.activation_bytes
    assert policy.token_budget == LEAST_TOKENS


def test_a_quarter_of_a_gpu_is_for_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6 * 2**30, 80 * 2**30))
    assert MemoryBudget(torch.device("cuda"), 1).activation_bytes == 16 * 2**30
    assert 0 < MemoryBudget(torch.device("cpu"), 1).activation_bytes <= CPU_ACTIVATIONS


def test_a_dropped_copy_of_the_model_is_freed(policy: SharedModel) -> None:
    """Without adapters a role is a model of its own, whose layers refer to themselves."""
    policy.adapters = None
    policy.add_role("copy", start=BASE)
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
    assert memory.halvings == 2 and memory.sampling_halvings == 1


def test_half_precision_stores_what_was_estimated(tmp_path: Path) -> None:
    """Twice the truth would make micro-batches half as large as intended."""
    import alignkit_plugins.models.tiny

    spec = ModelSpec(base="tiny", dtype="bfloat16", device="cpu", lora=LoraSpec(r=4, lora_alpha=8))
    policy = SharedModel(spec, str(alignkit_plugins.models.tiny.source(tmp_path)))
    policy.add_role("new")
    policy.make_trainable("new")
    weights = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    stored: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        alive.append(x)
        if x.untyped_storage().data_ptr() not in weights:
            stored[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        policy.hidden("new", TreeLayout([GroupSpan(0, 512, ())]), torch.arange(512) % 300)
    assert (
        0.9 * sum(stored.values())
        < 512 * policy.memory.bytes_per_token
        < 1.6 * sum(stored.values())
    )


def test_next_token_logprobs_shrink_too(policy: SharedModel) -> None:
    service = LoadedBase(policy, lambda reference: Path(reference))
    prompts = [[Message(role="user", content=f"how are you, {n}?")] for n in range(40)]
    whole = service[BASE].next_token_logprobs(prompts, ["yes", "no"])
    with memory_for(policy, 400):
        smaller = service[BASE].next_token_logprobs(prompts, ["yes", "no"])
    torch.testing.assert_close(smaller, whole, atol=1e-5, rtol=1e-5)
    assert policy.memory.halvings > 0 and whole.isfinite().all()
