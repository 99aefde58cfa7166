"""What the kernels are chosen by: the processor, and private operators of torch that may change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from alignkit.kernels import capabilities, matmul
from alignkit.models.loading import dtype_of
from alignkit.settings import ModelSpec
from alignkit_plugins.gpu import flex_attention

CPU = torch.device("cpu")


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """A processor with these instructions, and whether oneDNN says that it multiplies bf16."""
    flags, supported = request.param
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: dict.fromkeys(flags, True), raising=False
    )
    capabilities._cpu_multiplies_bf16.cache_clear()
    yield
    capabilities._cpu_multiplies_bf16.cache_clear()


@pytest.mark.parametrize(
    ("processor", "native"),
    [
        ((("avx512_f", "avx512_bw", "avx512_vnni"), True), False),  # oneDNN converts every number
        ((("avx2", "fma3"), False), False),
        ((("avx512_f", "avx512_bf16"), True), True),
        ((("avx512_f", "avx512_bf16"), False), False),  # ONEDNN_MAX_CPU_ISA=AVX2
        ((("neon", "bf16"), True), True),
    ],
    indirect=["processor"],
)
@pytest.mark.usefixtures("processor")
def test_auto_dtype_is_bf16_only_with_instructions_for_it(native: bool) -> None:
    def chosen(**keys: Any) -> torch.dtype:
        return dtype_of(ModelSpec(base="x", **keys), CPU)

    assert chosen() == (torch.bfloat16 if native else torch.float32)
    assert chosen(dtype="bfloat16") == torch.bfloat16
    assert chosen(lora=None) == torch.float32  # weights that learn need more digits


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_answers_for_itself(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU without the instructions claims bf16 as well, unless it is asked to leave out
    emulation.
    """
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or native,
    )
    assert capabilities.multiplies_bf16(torch.device("cuda")) is native


@pytest.mark.parametrize("deterministic", ["", "1"])
def test_attention_on_a_gpu_needs_no_plan_per_shape(
    deterministic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(flex_attention.DETERMINISTIC, deterministic)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    backend = torch.backends.cuda
    before = backend.cudnn_sdp_enabled(), backend.mem_efficient_sdp_enabled()
    try:
        backend.enable_cudnn_sdp(True)
        assert capabilities.on_gpu(CPU, "flex_attention") is None
        capabilities.on_gpu(torch.device("cuda"), "flex_attention").prepare()
        assert not backend.cudnn_sdp_enabled()
        assert backend.mem_efficient_sdp_enabled() is not bool(deterministic)
        assert torch.are_deterministic_algorithms_enabled() is bool(deterministic)
    finally:
        backend.enable_cudnn_sdp(before[0])
        backend.enable_mem_efficient_sdp(before[1])
        torch.use_deterministic_algorithms(False)


def test_without_private_operators_torchs_own_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "is_amd", lambda: True)
    for library in ("mkldnn", "mkl"):
        monkeypatch.setattr(torch.ops, library, object())
    assert not capabilities.uses_onednn()
    assert not capabilities.can_pack_weights()
    x, weight = torch.randn(300, 64), torch.randn(64, 64)
    assert torch.equal(matmul.linear(x, weight), torch.nn.functional.linear(x, weight))
