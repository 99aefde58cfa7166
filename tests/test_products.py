"""Products by another library: the same numbers and gradients, and only where it is meant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from alignkit.kernels import matmul
from alignkit.models.loading import dtype_of
from alignkit.settings import ModelSpec

ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()
needs_onednn = pytest.mark.skipif(not ONEDNN, reason="torch was built without oneDNN")


@pytest.fixture(autouse=True)
def _on_any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "by_onednn", lambda: ONEDNN)
    monkeypatch.setattr(matmul, "LEAST", 1)


@needs_onednn
@pytest.mark.parametrize("shape", [(7, 5), (1, 7, 5), (2, 3, 5)])
@pytest.mark.parametrize("biased", [True, False])
def test_product_and_gradient_are_those_of_linear(shape: tuple[int, ...], biased: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(size, generator=generator) for size in (shape, (4, 5), (4,)))
    x.requires_grad_()
    given = bias if biased else None
    found, expected = matmul.linear(x, weight, given), F.linear(x, weight, given)
    assert "_Frozen" in type(found.grad_fn).__name__
    torch.testing.assert_close(found, expected)
    upstream = torch.randn(expected.shape, generator=generator)
    gradients = [torch.autograd.grad(y, x, upstream)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients)
    flat = upstream.flatten(0, -2)
    torch.testing.assert_close(matmul.times(flat, weight), flat @ weight)
    with torch.no_grad():
        torch.testing.assert_close(matmul.linear(x, weight, given), expected)


@needs_onednn
def test_a_part_of_a_larger_matrix_is_copied_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Number by number it would take a thousand times as long, and be as right."""
    plain, seen = torch.ops.mkldnn._linear_pointwise, []

    def spy(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> Any:
        seen.append(weight.is_contiguous() or weight.t().is_contiguous())
        return plain(x, weight, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", spy)
    a, b = torch.randn(6, 3), torch.randn(3, 9)[:, 2:6]
    for left, right in ((a, b), (a, torch.randn(4, 3).t()), (a, torch.randn(3, 1).expand(3, 4))):
        torch.testing.assert_close(matmul.times(left, right), left @ right)
    assert seen == [True] * 3


@needs_onednn
def test_products_of_a_few_numbers_stay_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    plain = matmul._product
    monkeypatch.setattr(matmul, "_product", lambda x, *rest: found.append(len(x)) or plain(x, *rest))
    monkeypatch.setattr(matmul, "LEAST", 2 * 5 * 4)
    for rows in (1, 2, 3):
        matmul.linear(torch.randn(rows, 5), torch.randn(4, 5))
        matmul.times(torch.randn(rows, 4), torch.randn(4, 5))
    assert found == [2, 2, 3, 3]


@needs_onednn
def test_times_gives_no_gradient_by_either_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for onednn in (True, False):
        monkeypatch.setattr(matmul, "by_onednn", lambda onednn=onednn: onednn)
        assert not matmul.times(torch.randn(3, 4, requires_grad=True), torch.randn(4, 5)).requires_grad


@pytest.mark.parametrize("what", ["learned weight", "learned bias", "bfloat16", "float64", "no rows"])
def test_all_else_is_torch_s_own(what: str) -> None:
    dtype = {"bfloat16": torch.bfloat16, "float64": torch.float64}.get(what, torch.float32)
    x = torch.randn(0 if what == "no rows" else 3, 5, dtype=dtype).requires_grad_()
    weight = torch.randn(4, 5, dtype=dtype, requires_grad=what == "learned weight")
    bias = torch.randn(4, dtype=dtype, requires_grad=what == "learned bias")
    found = matmul.linear(x, weight, bias)
    torch.testing.assert_close(found, F.linear(x, weight, bias), rtol=0, atol=0)
    found.sum().backward()
    assert x.grad is not None
    for parameter in (weight, bias):
        assert (parameter.grad is not None) == parameter.requires_grad


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """One that has these instructions."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True for name in request.param}, raising=False)
    matmul.multiplies_bf16.cache_clear()
    yield
    matmul.multiplies_bf16.cache_clear()


@pytest.mark.parametrize(
    ("processor", "native"),
    [
        (("avx512_f", "avx512_bw", "avx512_vnni"), False),  # oneDNN supports bf16 here, by converting every number
        (("avx2", "fma3"), False),
        (("avx512_f", "avx512_bf16"), True),
        (("neon", "bf16"), True),
    ],
    indirect=["processor"],
)
@pytest.mark.usefixtures("processor")
def test_bf16_by_itself_only_where_there_are_instructions_for_it(native: bool) -> None:
    def chosen(**given: Any) -> torch.dtype:
        return dtype_of(ModelSpec(base="x", **given), torch.device("cpu"))

    assert chosen() == (torch.bfloat16 if native else torch.float32)
    assert chosen(dtype="bfloat16") == torch.bfloat16
    assert chosen(lora=None) == torch.float32  # what learns itself needs more digits
