"""Memory that runs out: micro-batches shrink, results do not change, and what cannot shrink is told."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkit import Group, Response
from alignkit.kernels import memory
from alignkit.kernels.memory import GROWTH, TrimOnGrowth, ran_out
from alignkit.models.budget import LEAST_TOKENS
from alignkit.models.encoding import Encoder
from alignkit.models.examples import Examples
from alignkit.models.forward import measure
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.settings import LoraSpec, ModelSpec, Settings
from alignkit.training.learner import Learner


@pytest.fixture
def policy(tmp_path: Path) -> SharedModel:
    import alignkit_tiny

    lora = LoraSpec(r=4, lora_alpha=8)
    return SharedModel(
        ModelSpec(base="tiny", dtype="float32", device="cpu", lora=lora), str(alignkit_tiny.source(tmp_path))
    )


def examples(policy: SharedModel) -> Examples:
    encoder = Encoder(policy.tokenizer)
    words = ("yes", "no, not at all, never, by no means", "perhaps", "I am well, thank you, and how are you today?")
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
    """A policy that runs out of memory above so many tokens in a row, and once after so many pieces that fitted; gives
    the sizes of those.
    """
    whole, fitted, left = policy.hidden, [], [pieces]

    def hidden(role: str, layout: Any, row: Tensor) -> Tensor:
        left[0] -= len(row) <= tokens
        if len(row) > tokens or left[0] == -1:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        fitted.append(len(row))
        return whole(role, layout, row)

    policy.hidden = hidden  # type: ignore[method-assign]
    try:
        yield fitted
    finally:
        policy.hidden = whole  # type: ignore[method-assign]


def learner(policy: SharedModel) -> Learner:
    from alignkit.plugins import plugins

    thing = plugins().registry.get("algorithms", "sft").implementation
    policy.add_role("new")
    return Learner(policy, thing(thing.Options()), Settings(learning_rate=1e-3, max_grad_norm=1e9), "new")


def test_a_step_that_does_not_fit_is_done_again_in_smaller_pieces(policy: SharedModel) -> None:
    work, data = learner(policy), examples(policy)
    before = policy.token_budget
    metrics = work._gradients(data)
    whole = {name: p.grad.clone() for name, p in work.parameters.items() if p.grad is not None}
    with memory_for(policy, 700, pieces=2) as fitted:
        again = work.step(data, 0.0)
    assert policy.token_budget <= 700 < before and policy.memory.halvings > 0
    assert again["token_budget"] == policy.token_budget and max(fitted) <= 700 and len(fitted) > 1
    # A half-finished attempt must leave nothing behind: its gradients are not added to the second's.
    for name, gradient in whole.items():
        torch.testing.assert_close(work.parameters[name].grad, gradient, atol=1e-6, rtol=1e-5)
    assert again["nll"] == pytest.approx(metrics["nll"], abs=1e-6)


def test_measuring_shrinks_too(policy: SharedModel) -> None:
    data = examples(policy)
    whole = measure(policy, BASE, data.groups, "logprobs")
    with memory_for(policy, 700):
        smaller = measure(policy, BASE, data.groups, "logprobs")
    for one, other in zip(whole, smaller, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_halved_is_told(policy: SharedModel) -> None:
    with memory_for(policy, 5), pytest.raises(RuntimeError, match="can't allocate"):
        measure(policy, BASE, examples(policy).groups, "logprobs")


def test_other_errors_are_not_retried(policy: SharedModel) -> None:
    def broken(*_: Any) -> Tensor:
        raise RuntimeError("sizes do not match")

    policy.hidden = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="sizes do not match"):
        measure(policy, BASE, examples(policy).groups, "logprobs")
    assert policy.memory.halvings == 0
    assert ran_out(MemoryError()) and ran_out(torch.OutOfMemoryError("CUDA out of memory"))


def test_little_memory_makes_small_pieces(policy: SharedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "ENOUGH", 2.0**26)
    enough = policy.token_budget
    policy.memory.activation_bytes = None
    monkeypatch.setattr(memory, "total", lambda device: 2.0**27 + 1)  # a quarter of it may be taken
    assert policy.token_budget > LEAST_TOKENS and policy.token_budget == pytest.approx(enough / 2, abs=1)
    monkeypatch.setattr(memory, "total", lambda device: 1.0)
    assert policy.token_budget == pytest.approx(enough / 2, abs=1)  # kept: rows are packed alike to the end
    policy.memory.activation_bytes = None
    assert policy.token_budget == LEAST_TOKENS


def test_a_quarter_of_a_gpu_is_for_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6 * 2**30, 80 * 2**30))
    assert memory.activation_budget(torch.device("cuda")) == 16 * 2**30
    assert 0 < memory.activation_budget(torch.device("cpu")) <= memory.ENOUGH


def test_a_dropped_copy_of_the_model_is_freed(policy: SharedModel) -> None:
    """Also where no adapter is used and a role is a model of its own, whose layers know themselves."""
    policy.adapters = None
    policy.add_role("copy", start=BASE)
    left = weakref.ref(next(iter(policy.parameters_of("copy").values())))
    gc.disable()
    try:
        policy.drop_role("copy")
        assert left() is None
    finally:
        gc.enable()


def test_a_resumed_stage_packs_as_the_killed_one_did(policy: SharedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    work = learner(policy)
    policy.memory.halvings = 2
    budget = policy.token_budget
    tensors, state = work.state()
    policy.memory.halvings, policy.memory.activation_bytes = 0, None
    monkeypatch.setattr(memory, "total", lambda device: 1.0)
    work.restore(tensors, state)
    assert policy.token_budget == budget
    assert policy.memory.halvings == 2


def test_memory_is_given_back_when_the_process_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [3, 3 + GROWTH - 1, 3 + GROWTH, 5, 4 + GROWTH, 5 + GROWTH, 9]
    monkeypatch.setattr(memory, "_resident", lambda: sizes.pop(0))
    returned = TrimOnGrowth()
    assert [returned.now() for _ in range(7)] == [False, False, True, False, False, True, False]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only glibc keeps what is freed")
def test_what_lies_between_used_pieces_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "GROWTH", 50 * 2**20)
    returned = TrimOnGrowth()
    assert not returned.now()
    pieces = [torch.ones(16_000) for _ in range(4000)]  # 64 kB each: too small for pages of their own
    kept = pieces[::100]
    del pieces
    held = memory._resident()
    assert returned.now()
    assert memory._resident() < held - 100 * 2**20
    assert all(float(piece.sum()) == 16_000 for piece in kept)


@pytest.mark.parametrize(("told", "wanted"), [("1048576\n", 2.0**20), ("max\n", None), (None, None)])
def test_a_container_s_limit_counts(
    told: str | None, wanted: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, file = torch.device("cpu"), tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CONTAINER", ())
    machine = memory.total(cpu)
    if told is not None:
        file.write_text(told)
    monkeypatch.setattr(memory, "CONTAINER", (file, tmp_path / "none"))
    assert memory.total(cpu) == (machine if wanted is None else wanted)
