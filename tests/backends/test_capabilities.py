"""What the kernels are chosen by: the processor, and private operators of torch that may change."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from alignkit.contract.settings import ModelSpec
from alignkit.kernels import backends, memory
from alignkit.models.loading import dtype_of, machine
from alignkit_plugins.backends import cpu, gpu, processor
from alignkit_plugins.backends.cpu import Cpu
from alignkit_plugins.backends.gpu import Gpu

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """What an earlier test found out about the processor."""
    for cached in (processor.multiplies_bf16, backends._choose):
        cached.cache_clear()
    yield
    for cached in (processor.multiplies_bf16, backends._choose):
        cached.cache_clear()


# Flags of a processor, whether oneDNN supports bf16 on it, and whether it has instructions for it
PROCESSORS = yaml.safe_load("""
- [avx512_f avx512_bw avx512_vnni, true, false]  # oneDNN converts every number
- [avx2 fma3, false, false]
- [avx512_f avx512_bf16, true, true]
- [avx512_f avx512_bf16, false, false]  # ONEDNN_MAX_CPU_ISA=AVX2
- [neon bf16, true, true]
""")


@pytest.mark.parametrize(("flags", "supported", "native"), PROCESSORS)
def test_auto_dtype_is_bf16_only_with_instructions_for_it(
    flags: str, supported: bool, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    flags_of_cpu = dict.fromkeys(flags.split(), True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags_of_cpu, raising=False)
    chosen = dtype_of(ModelSpec(base="x"), CPU)
    assert chosen == (torch.bfloat16 if native else torch.float32)
    assert dtype_of(ModelSpec(base="x", dtype="bfloat16"), CPU) == torch.bfloat16
    # Weights that learn need more digits
    assert dtype_of(ModelSpec(base="x", lora=None), CPU) == torch.float32


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_without_the_instructions_emulates_bf16(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert Gpu().priority(GPU, torch.bfloat16) == 1 + native
    assert Gpu().priority(GPU, torch.float32) == 1 and Gpu().priority(CPU, torch.float32) is None


@pytest.mark.parametrize("deterministic", ["", "1"])
def test_attention_on_a_gpu_needs_no_plan_per_shape(
    deterministic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(gpu.DETERMINISTIC, deterministic)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    backend = torch.backends.cuda
    before = backend.cudnn_sdp_enabled(), backend.mem_efficient_sdp_enabled()
    try:
        backend.enable_cudnn_sdp(True)
        Gpu().start()
        assert not backend.cudnn_sdp_enabled()
        assert backend.mem_efficient_sdp_enabled() is not bool(deterministic)
        assert torch.are_deterministic_algorithms_enabled() is bool(deterministic)
    finally:
        backend.enable_cudnn_sdp(before[0])
        backend.enable_mem_efficient_sdp(before[1])
        torch.use_deterministic_algorithms(False)


def test_without_private_operators_torchs_own_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "is_amd", lambda: True)
    monkeypatch.setattr(torch.ops, "mkl", object())
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(_linear_pointwise=None))
    assert processor.can_pack_weights()
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert not processor.uses_onednn() and not processor.can_pack_weights()
    x, weight = torch.randn(300, 64), torch.randn(64, 64)
    assert torch.equal(Cpu().linear(x, weight), torch.nn.functional.linear(x, weight))


def test_glibc_keeps_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(memory, "glibc", lambda *given: asked.append(given))
    monkeypatch.setattr(cpu, "share_cores", lambda: None)
    monkeypatch.setattr("os.environ", kept := {"LRU_CACHE_CAPACITY": "7"})
    Cpu().start()
    assert kept == {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "7"}
    assert asked == [("mallopt", -1, 2**31 - 1), ("mallopt", -3, 2**31 - 1)]


@pytest.mark.parametrize(("amd", "library"), [(True, " by oneDNN"), (False, "")])
def test_a_record_names_the_library_that_rounds_otherwise(
    monkeypatch: pytest.MonkeyPatch, amd: bool, library: str
) -> None:
    monkeypatch.setattr(processor, "uses_onednn", lambda: amd)
    found = machine(ModelSpec(base="tiny", dtype="float32", device="cpu"))
    level, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    assert found["made_on"] == f"float32 on {level}{library} with {threads} threads"
