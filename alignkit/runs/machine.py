"""What a stage's last bits depend on besides its inputs: processor, instructions, threads, processes, device and code.

stage.json holds it, but no hash does: a result counts on another machine, too. `alignkit verify` compares it.
"""

from __future__ import annotations

import platform
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from alignkit.io.digest import digest
from alignkit.io.source_code import COMPUTING, computing_code

if TYPE_CHECKING:
    from alignkit.models.service import ModelRouter


def machine_of(models: ModelRouter | None = None) -> dict[str, Any]:
    """Interpreter, system, processor, instructions, threads, processes, device, and a digest of alignkit's own code.

    models: those of the run, whose device it is; None: a device of no model, so "cpu".
    """
    services = models.services.values() if models is not None else ()
    device = next((service.model.device for service in services), torch.device("cpu"))
    return {
        "python": platform.python_version(),
        "system": " ".join(filter(None, (platform.system(), platform.machine(), *platform.libc_ver()))),
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": distributed.get_world_size() if distributed.is_initialized() else 1,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "code": _code(),
    }


def processor() -> str:
    """The processor's name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def _code() -> str:
    """A digest of the modules that a stage's result depends on, which change between versions, too."""
    return digest(computing_code(rooms=(*COMPUTING, "evaluation", "io", "recipe", "runs")))
