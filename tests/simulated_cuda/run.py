"""alignkit's command on the simulated device: `python tests/simulated_cuda/run.py run
recipes/smoke.yaml --out DIR`.

SIMULATED_GIB: memory of the device. SIMULATED_TRITON=1: it compiles attention. Prints what was
counted as the last line, in JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import device


def main() -> int:
    simulated = device.enable(
        float(os.environ.get("SIMULATED_GIB", "80")), os.environ.get("SIMULATED_TRITON") == "1"
    )
    from alignkit.cli import main as command

    code = command()
    counted = {
        "launches": simulated.launches,
        "waits": sum(simulated.waits.values()),
        "copies": sum(simulated.copies.values()),
        "attention": dict(simulated.attention),
        "peak": simulated.memory.peak,
        "converted_masks": simulated.converted_masks,
        "places": dict((simulated.waits + simulated.copies).most_common(20)),
    }
    print(json.dumps(counted), flush=True)
    os._exit(code)  # the simulated device's threads do not end by themselves


if __name__ == "__main__":
    raise SystemExit(main())
