"""What a stage's last bits depend on besides its inputs: processor, instructions, threads, processes and device.

stage.json holds it, but no hash does: a result counts on another machine, too. `alignkit verify` compares it.
"""

from __future__ import annotations

import platform
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

if TYPE_CHECKING:
    from alignkit.models.service import ModelRouter


def machine_of(models: ModelRouter) -> dict[str, Any]:
    """Interpreter, system, processor, instructions, threads, processes and device. models: those of the run."""
    device = next((service.model.device for service in models.services.values()), torch.device("cpu"))
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": distributed.get_world_size() if distributed.is_initialized() else 1,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def processor() -> str:
    """The processor's name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
