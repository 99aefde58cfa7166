"""A frozen layer and its adapter in one step, against separate operators."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from alignkit.kernels import capabilities, matmul
from alignkit.kernels.lora import adapted
from tests.same import distance, gradients, same

SCALE = 1.7


def drawn(*shape: int, dtype: torch.dtype = torch.float64, learned: str = "x A B") -> list[Tensor]:
    """x [..., 5], weight [6, 5], bias [6], A [2, 5], B [6, 2]."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (*shape, 5), "weight": (6, 5), "bias": (6,), "A": (2, 5), "B": (6, 2)}
    return [
        torch.randn(size, generator=generator, dtype=torch.float64)
        .to(dtype)
        .requires_grad_(name in learned)
        for name, size in shapes.items()
    ]


def written_out(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
    return F.linear(x, weight, bias) + SCALE * F.linear(F.linear(x, down), up)


def on_cpu(onednn: bool) -> object:
    return pytest.param(onednn, marks=pytest.mark.cpu_only("oneDNN multiplies on CPUs"))


LEARNED = yaml.safe_load("""
- [[7], true, x A B]
- [[1, 7], false, x A B]
- [[2, 3], true, x A B]
- [[7], true, x]
- [[7], true, A]
- [[7], true, B]
- [[7], false, A B]
""")


@pytest.mark.parametrize("onednn", [False, on_cpu(True)])
@pytest.mark.parametrize(("shape", "biased", "learned"), LEARNED)
def test_values_and_gradients(
    shape: list[int],
    biased: bool,
    learned: str,
    onednn: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And no input is overwritten by the sums, which are made in place."""
    if onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    original, calls = matmul._onednn_product, []
    monkeypatch.setattr(matmul, "_onednn_product", lambda *x: calls.append(1) or original(*x))
    monkeypatch.setattr(capabilities, "uses_onednn", lambda: onednn)
    monkeypatch.setattr(matmul, "MIN_MULTIPLICATIONS", 1)
    dtype = torch.float32 if onednn else torch.float64
    x, weight, bias, down, up = drawn(*shape, dtype=dtype, learned=learned)
    before = [value.detach().clone() for value in (x, weight, bias, down, up)]
    factors = (x, weight, bias if biased else None, down, up)
    wanted = written_out(*factors)
    same(adapted(*factors, SCALE), wanted, [y for y in (x, down, up) if y.requires_grad])
    # Forward: W x and A x. Backward: two for x, one each for A and B. The two sums are torch's own.
    assert bool(calls) == onednn and (learned != "x A B" or len(calls) in (0, 6))
    calls.clear()
    with torch.no_grad():
        same(adapted(*factors, SCALE), wanted)
    assert len(calls) == 3 * onednn
    for now, then in zip((x, weight, bias, down, up), before, strict=True):
        assert torch.equal(now, then)


def test_the_output_may_be_changed_in_place() -> None:
    """Some models clamp it (Olmo's `clip_qkv`)."""
    x, weight, bias, down, up = drawn(1, 7)
    found = adapted(x, weight, bias, down, up, SCALE).clamp_(-1, 1)
    same(found, written_out(x, weight, bias, down, up).clamp(-1, 1), [x, down, up])


def test_fp32_adapters_on_a_bf16_layer() -> None:
    """Adapters and their gradients are fp32; products have the layer's dtype."""
    *layer, down, up = drawn(7, dtype=torch.float32)
    low = [value.detach().bfloat16() for value in layer]
    out = adapted(low[0], low[1], low[2], down, up, SCALE)
    wanted = written_out(low[0].float(), low[1].float(), low[2].float(), down, up)
    assert out.dtype == torch.bfloat16 and distance(out, wanted) < 0.01
    for mine, theirs in zip(*(gradients(y, [down, up]) for y in (out, wanted)), strict=True):
        assert mine.dtype == torch.float32 and distance(mine, theirs) < 0.02
