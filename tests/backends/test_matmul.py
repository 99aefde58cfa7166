"""Products by oneDNN: the values and gradients of torch's own, and only for the tensors they are
meant for.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from alignkit_plugins.backends import processor, products
from alignkit_plugins.backends.products import product
from tests.same import same

pytestmark = [
    pytest.mark.cpu_only("oneDNN and packed weights are for CPUs"),
    pytest.mark.skipif(
        not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
    ),
]


@pytest.fixture(autouse=True)
def _as_on_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "uses_onednn", lambda: True)
    monkeypatch.setattr(products, "MIN_MULTIPLICATIONS", 60)  # the fewest here


def test_a_slice_of_a_larger_matrix_is_copied_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's values would be right for other strides too, but take a thousand times as long."""
    original, contiguous = torch.ops.mkldnn._linear_pointwise, []

    def spy(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> Any:
        contiguous.append(weight.is_contiguous() or weight.t().is_contiguous())
        return original(x, weight, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", spy)
    left, wide = torch.randn(5, 3), torch.randn(3, 9)
    for right in (wide[:, 2:6], torch.randn(4, 3).t(), wide[:, :1].expand(3, 4)):
        same(product(left, right.t()), left @ right)
    assert contiguous == [True] * 3
