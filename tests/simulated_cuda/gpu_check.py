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
    from benchmarks.gpu_check import app

    code = 0
    try:
        app(standalone_mode=False)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)  # the simulated device's threads do not end by themselves
