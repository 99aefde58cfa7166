"""Memory of the device: how much there is, errors that mean it ran out, and freed memory that
returns to the system.
"""

from __future__ import annotations

import platform
import resource
from pathlib import Path

import pytest
import torch

from alignkit.errors import memory_ran_out
from alignkit.kernels import memory
from alignkit.kernels.memory import GROWTH, TrimOnGrowth

CPU, GPU = torch.device("cpu"), torch.device("cuda")
GIB = 2**30


@pytest.mark.parametrize(("content", "limit"), [("1048576\n", 2.0**20), ("max\n", None)])
def test_a_containers_limit_counts(
    content: str, limit: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "memory.max"
    file.write_text(content)
    monkeypatch.setattr(memory, "CGROUP_LIMITS", (tmp_path / "none",))
    machine = memory.total(CPU)
    monkeypatch.setattr(memory, "CGROUP_LIMITS", (file, tmp_path / "none"))
    assert memory.total(CPU) == (limit or machine)


def test_a_gpu_has_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = {"mem_get_info": (6 * GIB, 80 * GIB), "memory_reserved": 5 * GIB}
    cuda |= {"memory_allocated": 2 * GIB, "max_memory_allocated": 7 * GIB}  # type: ignore[dict-item]
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory.total(GPU) == 80 * GIB
    assert memory.available(GPU) == 9 * GIB  # torch's cache can be used again
    monkeypatch.setattr(memory, "_peak", lambda: 3 * GIB)
    assert memory.peak_text(GPU) == "7.0 GiB on the GPU, 3.0 GiB on the host"
    assert memory.peak_text(CPU) == "3.0 GiB"


@pytest.mark.parametrize(
    ("kind", "message", "ran_out"),
    [
        (MemoryError, "", True),
        (torch.OutOfMemoryError, "CUDA out of memory. Tried", True),
        (RuntimeError, "[enforce fail] DefaultCPUAllocator: can't allocate memory", True),
        (RuntimeError, "HIP out of memory", True),
        (RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`", True),
        (RuntimeError, "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED", False),
        (ValueError, "out of memory", False),
    ],
)
def test_errors_that_mean_memory_ran_out(
    kind: type[Exception], message: str, ran_out: bool
) -> None:
    assert memory_ran_out(kind(message)) is ran_out


def test_the_process_is_trimmed_once_it_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [3, 3 + GROWTH - 1, 3 + GROWTH, 9, 5, 4 + GROWTH, 5 + GROWTH]
    monkeypatch.setattr(memory, "_resident", lambda: sizes.pop(0))
    trimmed: list[int] = []
    monkeypatch.setattr(memory, "trim", lambda: trimmed.append(len(sizes)))
    growth = TrimOnGrowth()
    for _ in range(7):
        growth.check()
    assert trimmed == [4, 0]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc retains freed memory")
def test_gaps_between_live_tensors_are_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "GROWTH", 50 * 2**20)
    # Else the tensors fit into what earlier tests have freed, and the process does not grow
    memory.trim()
    growth = TrimOnGrowth()
    growth.check()
    # 64 kB each: too small for mappings of their own
    tensors = [torch.ones(16_000) for _ in range(4000)]
    live = tensors[::100]
    del tensors
    before = memory._resident()
    growth.check()
    assert memory._resident() < before - 100 * 2**20
    assert all(float(tensor.sum()) == 16_000 for tensor in live)


@pytest.mark.parametrize(("system", "factor"), [("linux", 1024), ("darwin", 1)])
def test_the_peak_is_in_the_unit_of_the_system(
    monkeypatch: pytest.MonkeyPatch, system: str, factor: int
) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    monkeypatch.setattr(resource, "getrusage", lambda who: used)
    monkeypatch.setattr(memory.sys, "platform", system)
    assert memory._peak() == used.ru_maxrss * factor
