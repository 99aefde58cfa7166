"""A part of `benchmarks/gpu_check.py` on the simulated device."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # the folder of this file is there

import device

if __name__ == "__main__":
    device.enable(triton=True)
    from benchmarks import gpu_check

    gpu_check.NF4 = "none"
    code = 0
    try:
        gpu_check.app(standalone_mode=False)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)  # the simulated device's threads do not end by themselves
