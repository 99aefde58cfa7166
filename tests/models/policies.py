"""Fixtures: models of several architectures, loaded once per module."""

from __future__ import annotations

from typing import Any

import pytest
from architectures import ARCHITECTURES, WAYS, load, make
from torch.utils.checkpoint import checkpoint

from alignkit.kernels.backends import Backend
from alignkit.kernels.layout import GroupSpan
from alignkit.models import memory
from alignkit.models.shared_model import SharedModel
from alignkit_plugins.backends import (
    cpu,
    flex_attention,
    split_attention,
    static_decoding,
    tiled_attention,
)
from alignkit_plugins.backends.cpu import Cpu
from alignkit_plugins.backends.gpu import Gpu
from alignkit_plugins.backends.static_decoding import StaticDecoding
from tests.simulated_cuda.flex import dense


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SharedModel:
    found = load(make(tmp_path_factory.mktemp(request.param), request.param))
    assert found.packs, found.unpacked_because
    return found


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> SharedModel:
    return load(make(tmp_path_factory.mktemp("llama"), "Llama"))


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every way to compute a group's attention, whichever its shape would select."""
    split = request.param == "split responses"
    if request.param == "tiles":
        monkeypatch.setattr(tiled_attention, "price", lambda x, masked: 1.0)
        monkeypatch.setattr(tiled_attention, "SETUP", 0)
        monkeypatch.setattr(tiled_attention, "QUERIES", 2)
    if request.param == "one call":
        monkeypatch.setattr(flex_attention, "supported", lambda *_: True)
        monkeypatch.setattr(flex_attention, "compiled_attention", lambda: dense)
        monkeypatch.setattr(Cpu, "attention", Gpu.attention)

    def splits(span: GroupSpan) -> bool:
        return split and len(span.responses) > 0 < min(span.responses)

    for module in (split_attention, cpu):
        monkeypatch.setattr(module, "saves_products", splits)
    if request.param == "reference":
        monkeypatch.setattr(Cpu, "attention", Backend.attention)
    return str(request.param)


def recomputed_layers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The layers that passes compute again in backward, from now on."""
    found: list[Any] = []

    def counted(run: Any, *args: Any, **options: Any) -> Any:
        found.append(run)
        return checkpoint(run, *args, **options)

    monkeypatch.setattr(memory, "checkpoint", counted)
    return found


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are decoded, and drawn ahead, as a GPU does it."""
    monkeypatch.setattr(Cpu, "decoding", StaticDecoding)
    monkeypatch.setattr(static_decoding, "STEP", 4)
