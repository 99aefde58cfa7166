"""When memory runs out, micro-batches are halved and the work is done again: the same result in smaller pieces.

And before that: what large tensors free is kept for the next ones, and goes back to the system when it has piled up.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    pass

T = TypeVar("T")
CONTAINER = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
GROWTH = 512 * 2**20  # bytes


def total(device: torch.device) -> float:
    """Bytes of the device's memory, or of main memory, of the container's where that has less; without limit where the
    system does not tell.
    """
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    try:
        machine = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (OSError, ValueError, AttributeError):
        machine = float("inf")
    return min([machine, *(_limit(file) for file in CONTAINER)])


def _limit(file: Path) -> float:
    """What a file of a control group says, in bytes; it says "max" where there is no limit."""
    try:
        return float(file.read_text().strip().replace("max", "inf"))
    except (OSError, ValueError):
        return float("inf")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, told by what libraries raise for it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate" in text)


@functools.cache
def _allocator(name: str) -> Callable[..., int] | None:
    """A function of glibc's allocator; None where there is another."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None


def retain_freed_memory() -> None:
    """Let glibc keep what large tensors free: giving it back and faulting it in again costs a tenth of a step."""
    if (mallopt := _allocator("mallopt")) is not None:
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        mallopt(-3, 2**31 - 1)  # M_MMAP_THRESHOLD


def trim_freed_memory() -> None:
    """Let glibc give freed memory back to the system."""
    if (trim := _allocator("malloc_trim")) is not None:
        trim(0)


@dataclass
class TrimOnGrowth:
    """Gives freed memory back once the process has grown by GROWTH.

    Rows of tokens differ in size from step to step, so the pieces that `retain_freed_memory` keeps fit badly, and the
    process would grow without end: SFT of a model with 135M weights from 2 to 4.4 GiB in 20 steps.
    """

    before: int | None = None  # bytes that were resident when it was first looked at after giving back

    def now(self) -> bool:
        """Call it where little is held, such as between steps. Whether memory was given back."""
        if _allocator("malloc_trim") is None:
            return False
        resident = _resident()
        if self.before is None:
            self.before = resident
        if resident < self.before + GROWTH:
            return False
        trim_freed_memory()
        self.before = None
        return True


def _resident() -> int:
    """Bytes of this process in memory; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
