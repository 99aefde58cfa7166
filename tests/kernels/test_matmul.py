"""Products by oneDNN: the values and gradients of torch's own, and only for the tensors they are
meant for.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from alignkit.kernels import capabilities, matmul
from tests.same import same

pytestmark = [
    pytest.mark.cpu_only("oneDNN and packed weights are for CPUs"),
    pytest.mark.skipif(
        not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
    ),
]


@pytest.fixture(autouse=True)
def _as_on_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "uses_onednn", lambda: True)
    monkeypatch.setattr(matmul, "MIN_MULTIPLICATIONS", 60)  # the fewest here


@pytest.mark.parametrize("shape", [(7, 5), (1, 7, 5), (2, 3, 5)])
@pytest.mark.parametrize("biased", [True, False])
def test_linear_has_torchs_values_and_gradients(shape: tuple[int, ...], biased: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(size, generator=generator) for size in (shape, (4, 5), (4,)))
    x.requires_grad_()
    added = bias if biased else None
    ours, theirs = matmul.linear(x, weight, added), F.linear(x, weight, added)
    assert "_FrozenLinear" in type(ours.grad_fn).__name__
    same(ours, theirs, [x])
    with torch.no_grad():
        same(matmul.linear(x, weight, added), theirs)
        same(matmul.matmul(theirs.flatten(0, -2), weight), theirs.flatten(0, -2) @ weight)


def test_a_slice_of_a_larger_matrix_is_copied_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's values would be right for other strides too, but take a thousand times as long."""
    original, contiguous = torch.ops.mkldnn._linear_pointwise, []

    def spy(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> Any:
        contiguous.append(weight.is_contiguous() or weight.t().is_contiguous())
        return original(x, weight, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", spy)
    left, wide = torch.randn(5, 3), torch.randn(3, 9)
    for right in (wide[:, 2:6], torch.randn(4, 3).t(), wide[:, :1].expand(3, 4)):
        same(matmul.matmul(left, right), left @ right)
    assert contiguous == [True] * 3


@pytest.mark.parametrize("onednn", [True, False])
def test_matmul_has_no_gradient_in_either_library(
    onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capabilities, "uses_onednn", lambda: onednn)
    assert not matmul.matmul(torch.randn(3, 4, requires_grad=True), torch.randn(4, 5)).requires_grad


@pytest.mark.parametrize(
    "case", ["learned weight", "learned bias", "bfloat16", "float64", "no rows"]
)
def test_everything_else_is_torchs_own(case: str) -> None:
    dtype = getattr(torch, case, torch.float32)
    x = torch.randn(0 if case == "no rows" else 3, 5, dtype=dtype).requires_grad_()
    weight = torch.randn(4, 5, dtype=dtype, requires_grad=case == "learned weight")
    bias = torch.randn(4, dtype=dtype, requires_grad=case == "learned bias")
    learned = [parameter for parameter in (x, weight, bias) if parameter.requires_grad]
    same(matmul.linear(x, weight, bias), F.linear(x, weight, bias), learned, rtol=0, atol=0)
