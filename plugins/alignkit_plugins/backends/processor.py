"""What a CPU and this build of torch can do, from names and versions.

Where torch was built without the private operators of a library, its public ones are used instead.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

# CPU flags of instructions that multiply bf16.
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16")


@functools.cache
def is_amd() -> bool:
    """Whether this is an AMD processor."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return False


@functools.cache
def multiplies_bf16() -> bool:
    """Whether it has instructions that multiply bf16."""
    # oneDNN's word is not enough: with AVX-512 alone it converts every number, four times as slow
    # as fp32. It has the last word, for ONEDNN_MAX_CPU_ISA keeps it from instructions that the
    # processor has.
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    # Torch 2.9 does not tell
    flags: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(map(flags.get, BF16_INSTRUCTIONS))


# Private operators of torch


def uses_onednn() -> bool:
    """Whether fp32 products go to oneDNN: on AMD processors, where torch's default, MKL, is
    slower.
    """
    return is_amd() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def can_pack_weights() -> bool:
    """Whether the library of fp32 products can reorder a weight in advance."""
    return uses_onednn() or hasattr(torch.ops.mkl, "_mkl_linear")
