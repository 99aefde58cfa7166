"""A frozen layer and its adapter in one step, against separate operators."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit.kernels import capabilities, matmul
from alignkit.kernels.lora import adapted

SCALE = 1.7
NAMES = ("x", "down", "up")


def drawn(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """x [..., 5], weight [6, 5], bias [6], down [2, 5], up [6, 2]."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (*shape, 5), "weight": (6, 5), "bias": (6,), "down": (2, 5), "up": (6, 2)}
    found = {
        name: torch.randn(size, generator=generator, dtype=torch.float64)
        for name, size in shapes.items()
    }
    for name in NAMES:
        found[name] = found[name].to(dtype).requires_grad_()
    return {name: value if name in NAMES else value.to(dtype) for name, value in found.items()}


def written_out(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
) -> Tensor:
    return F.linear(x, weight, bias) + scale * F.linear(F.linear(x, down), up)


@pytest.mark.parametrize(
    "onednn", [False, pytest.param(True, marks=pytest.mark.cpu_only("oneDNN multiplies on CPUs"))]
)
@pytest.mark.parametrize("shape", [(7,), (1, 7), (2, 3)])
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients(
    shape: tuple[int, ...], biased: bool, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    original, calls = matmul._onednn_product, []
    monkeypatch.setattr(
        matmul, "_onednn_product", lambda *factors: calls.append(1) or original(*factors)
    )
    monkeypatch.setattr(capabilities, "uses_onednn", lambda: onednn)
    monkeypatch.setattr(matmul, "MIN_MULTIPLICATIONS", 1)
    inputs = drawn(shape, torch.float32 if onednn else torch.float64)
    bias = inputs["bias"] if biased else None
    arguments = (inputs["x"], inputs["weight"], bias, inputs["down"], inputs["up"], SCALE)
    found, wanted = adapted(*arguments), written_out(*arguments)
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn(
        found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(1)
    )
    learned = [inputs[name] for name in NAMES]
    both = [torch.autograd.grad(out, learned, upstream) for out in (found, wanted)]
    for name, mine, theirs in zip(NAMES, *both, strict=True):
        torch.testing.assert_close(mine, theirs, msg=lambda text, name=name: f"{name}: {text}")
    # Forward: W x and A x. Backward: two for x, one each for A and B. The two sums are torch's own.
    assert len(calls) == (6 if onednn else 0)
    with torch.no_grad():
        torch.testing.assert_close(adapted(*arguments), wanted)
    assert len(calls) == (9 if onednn else 0)


@pytest.mark.parametrize("learned", [("x",), ("down",), ("up",), ("down", "up")])
def test_only_learned_inputs_get_a_gradient(learned: tuple[str, ...]) -> None:
    inputs = drawn((7,))
    for name in NAMES:
        inputs[name].requires_grad_(name in learned)
    adapted(
        inputs["x"], inputs["weight"], inputs["bias"], inputs["down"], inputs["up"], SCALE
    ).sum().backward()
    got = {name: inputs[name].grad for name in NAMES}
    assert {name for name, gradient in got.items() if gradient is not None} == set(learned)
    for name in learned:
        inputs[name].grad = None
    written_out(
        inputs["x"], inputs["weight"], inputs["bias"], inputs["down"], inputs["up"], SCALE
    ).sum().backward()
    for name in learned:
        torch.testing.assert_close(got[name], inputs[name].grad)


def test_inputs_are_not_overwritten() -> None:
    """The sums are made in place, so each must start from a fresh tensor."""
    inputs = drawn((3,))
    before = {name: value.detach().clone() for name, value in inputs.items()}
    adapted(
        inputs["x"], inputs["weight"], inputs["bias"], inputs["down"], inputs["up"], SCALE
    ).sum().backward()
    for name, value in inputs.items():
        torch.testing.assert_close(value.detach(), before[name], rtol=0, atol=0)


def test_the_output_may_be_changed_in_place() -> None:
    """Some models clamp it (Olmo's `clip_qkv`)."""
    inputs = drawn((1, 7))
    arguments = (inputs["x"], inputs["weight"], inputs["bias"], inputs["down"], inputs["up"], SCALE)
    learned = [inputs[name] for name in NAMES]
    found = torch.autograd.grad(adapted(*arguments).clamp_(-1, 1).square().sum(), learned)
    wanted = torch.autograd.grad(written_out(*arguments).clamp(-1, 1).square().sum(), learned)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_fp32_adapters_on_a_bf16_layer() -> None:
    """Adapters and their gradients are fp32; products have the layer's dtype."""
    inputs = drawn((7,), torch.float32)
    low = {name: inputs[name].detach().bfloat16() for name in ("x", "weight", "bias")}
    out = adapted(low["x"], low["weight"], low["bias"], inputs["down"], inputs["up"], SCALE)
    assert out.dtype == torch.bfloat16
    wanted = written_out(
        low["x"].float(),
        low["weight"].float(),
        low["bias"].float(),
        inputs["down"],
        inputs["up"],
        SCALE,
    )
    assert float((out.float() - wanted).detach().norm() / wanted.detach().norm()) < 0.01
    out.float().sum().backward()
    found = [inputs["down"].grad, inputs["up"].grad]
    inputs["down"].grad = inputs["up"].grad = None
    wanted.sum().backward()
    for mine, theirs in zip(found, (inputs["down"].grad, inputs["up"].grad), strict=True):
        assert mine is not None
        assert theirs is not None
        assert mine.dtype == torch.float32
        assert float((mine - theirs).norm() / theirs.norm()) < 0.02
