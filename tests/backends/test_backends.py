"""Every backend computes what the reference does, in every operation and its gradient.

The reference computes in float64 what a backend computes in its own dtype, from the same numbers.
They may differ by rounding, which grows with the root of the terms of a sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkit.errors import PluginError
from alignkit.host.plugins import plugins
from alignkit.kernels import backends
from alignkit.kernels.backends import Backend, LowRank, chosen
from alignkit.kernels.layout import AttentionArgs, GroupSpan
from alignkit.kernels.lm_head import HeadSpec, TokenWants
from alignkit_plugins.backends import flex_attention, processor, products, tiled_attention
from alignkit_plugins.backends.cpu import Cpu
from alignkit_plugins.backends.gpu import Gpu
from tests.same import distance
from tests.simulated_cuda.flex import dense

LENGTH = 60  # terms of the longest sum, about
# Groups to split, to cut into tiles, to mask; with windows, caps, scales and fewer heads of keys
SPANS = [
    GroupSpan(0, 5, (8, 3)), GroupSpan(16, 9, (6,) * 6), GroupSpan(61, 40, ()),
    GroupSpan(101, 0, (11,)), GroupSpan(112, 7, (0, 6, 5)), GroupSpan(130, 1, (1, 9)),
]  # fmt: skip
ARGS = [
    AttentionArgs(None, None, None),
    AttentionArgs(0.3, 7, None),
    AttentionArgs(None, None, 2.0),
]


class Inputs:
    """Numbers drawn in fp64, and rounded to a dtype, in fp64 or in it. learned: in order."""

    def __init__(self, dtype: torch.dtype, exact: bool):
        self.dtype, self.kept = dtype, torch.float64 if exact else dtype
        self.generator = torch.Generator().manual_seed(0)
        self.learned: list[Tensor] = []

    def __call__(self, *shape: int, learns: bool = True) -> Tensor:
        drawn = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        rounded = drawn.to(self.dtype).to(self.kept).requires_grad_(learns)
        self.learned += [rounded] if learns else []
        return rounded


def attention(backend: Backend, inputs: Inputs) -> list[Tensor]:
    q, k, v = (inputs(1, heads, 141, 16) for heads in (4, 2, 2))
    attend, wider = backend.attention(SPANS), inputs(1, 2, 141, 24)
    return [attend(q, k, values, args) for args in ARGS for values in (v, wider)]


def linear(backend: Backend, inputs: Inputs) -> list[Tensor]:
    x, bias = inputs(3, 7, LENGTH), inputs(20, learns=False)
    weight = inputs(20, LENGTH, learns=False)
    # Adapters are fp32 on a layer in bf16
    wide = torch.promote_types(x.dtype, torch.float32)
    down, up = inputs(4, LENGTH).to(wide), inputs(20, 4).to(wide)
    return [
        backend.linear(x, weight),
        backend.linear(x, weight, bias, LowRank(down, up, 1.7)),
        backend.linear(x.detach(), weight, None, LowRank(down, up.detach(), 1.7)),
        backend.linear(x[0], weight, bias, LowRank(down.detach(), up, 1.7)),
        backend.linear(x, inputs(20, LENGTH), inputs(20)),
    ]


def next_token(backend: Backend, inputs: Inputs) -> list[Tensor]:
    hidden, tokens, found = inputs(11, LENGTH), torch.arange(11), list[Tensor | None]()
    for learns in (True, False):
        weight, bias = inputs(17, LENGTH, learns=learns), inputs(17, learns=learns)
        for head in (HeadSpec(weight, bias, 2.0), HeadSpec(weight, None, 0.7, 3.0, 0.5)):
            found += backend.next_token(hidden, tokens, head, TokenWants(entropy=True))
    return [x for x in found if x is not None]


OPERATIONS = (attention, linear, next_token)


def numbers(operation: Any, backend: Backend, inputs: Inputs) -> list[Tensor]:
    """What an operation returns, and the gradients of what learns."""
    found = operation(backend, inputs)
    before = [x.detach().clone() for x in inputs.learned]
    draws = torch.Generator().manual_seed(1)
    loss = torch.zeros((), dtype=torch.float64)
    for x in found:
        upstream = torch.randn(x.shape, generator=draws, dtype=torch.float64)
        loss = loss + (x.double() * upstream).sum()
    gradients = torch.autograd.grad(loss, inputs.learned) if inputs.learned else ()
    assert all(map(torch.equal, inputs.learned, before))  # sums in place overwrite no input
    return [*found, *gradients]


def check_agreement(backend: Backend, operation: Any, dtype: torch.dtype) -> None:
    ours = numbers(operation, backend, Inputs(dtype, exact=False))
    exact = numbers(operation, Backend(), Inputs(dtype, exact=True))
    most = torch.finfo(dtype).eps * LENGTH**0.5
    for place, (x, wanted) in enumerate(zip(ours, exact, strict=True)):
        error = distance(x, wanted)
        assert error <= most, (operation.__name__, place, error)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", ["reference", "cpu", "tiles", "oneDNN", "gpu", "one call"])
def test_agreement(
    name: str, operation: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, where the GPU's kernels are those of torch."""
    if name == "tiles":
        monkeypatch.setattr(tiled_attention, "SETUP", 0)
        monkeypatch.setattr(tiled_attention, "QUERIES", 4)
        monkeypatch.setattr(tiled_attention, "supported", lambda x: True)
        monkeypatch.setattr(tiled_attention, "price", lambda x, masked: 0.0)
    if name == "oneDNN":
        monkeypatch.setattr(processor, "uses_onednn", torch.backends.mkldnn.is_available)
        monkeypatch.setattr(products, "MIN_MULTIPLICATIONS", 1)
    if name == "one call":
        monkeypatch.setattr(flex_attention, "supported", lambda *_: True)
        monkeypatch.setattr(flex_attention, "compiled_attention", lambda: dense)
    made = {"reference": Backend, "gpu": Gpu, "one call": Gpu}.get(name, Cpu)()
    check_agreement(made, operation, dtype)


# By operation: what is wrong with a method, given the right one
FAULTS: list[tuple[Any, str, Callable[..., Any]]] = [
    (attention, "attention", lambda of: lambda spans: lambda q, *kv: 1.001 * of(spans)(q, *kv)),
    (attention, "attention", lambda of: lambda spans: lambda q, k, *v: of(spans)(q, k.detach(), *v)),
    (linear, "linear", lambda of: lambda x, w, b=None, a=None: of(x, w, b, a and a._replace(scale=1.71))),
    (linear, "linear", lambda of: lambda x, w, b=None, a=None: of(x, w, b, a and a._replace(up=a.up.detach()))),
    (next_token, "next_token", lambda of: lambda x, t, head, e: of(x, t, replace(head, temperature=1.9), e)),
    (next_token, "next_token", lambda of: lambda *given: (of(*given)[0], of(*given)[1].detach())),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "name", "fault"), FAULTS)
def test_a_fault_is_found(operation: Any, name: str, fault: Callable[..., Any]) -> None:
    faulty = Backend()
    setattr(faulty, name, fault(getattr(faulty, name)))
    with pytest.raises((AssertionError, RuntimeError), match=r"differentiated|, \d+, "):
        check_agreement(faulty, operation, torch.float32)


def test_the_output_may_be_changed_in_place() -> None:
    """Some models clamp it (Olmo's `clip_qkv`)."""
    x, adapter = torch.randn(1, 7, 5, requires_grad=True), (torch.randn(2, 5), torch.randn(6, 2))
    out = Cpu().linear(x, torch.randn(6, 5), None, LowRank(*adapter, 1.7))
    out.clamp_(-1, 1).sum().backward()


# The choice


class Other(Backend):
    def priority(self, device: torch.device, dtype: torch.dtype) -> int | None:
        return {torch.float64: 1, torch.float16: 5}.get(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.float32])
def test_the_best_is_chosen_whatever_was_installed_first(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, known = torch.device("cpu"), plugins()
    one = replace(known.registrations("_backend")[0], name="aa", target=Other, distribution="x")
    for order in ([one, *known._all], [*known._all, one]):
        monkeypatch.setattr(known, "_all", order)
        backends._choose.cache_clear()
        if dtype == torch.float64:
            with pytest.raises(PluginError, match="both compute"):
                chosen(device, dtype)
        else:
            label = chosen(device, dtype).label.split()[0]
            assert label == ("aa" if dtype == torch.float16 else "cpu")
    monkeypatch.undo()
    backends._choose.cache_clear()
