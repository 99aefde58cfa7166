"""alignkit's command on the simulated device: `python tests/simulated_cuda/run.py run
recipes/smoke.yaml --out DIR`.

SIMULATED_TRITON=1: it compiles attention. Prints what was counted as the last line, in JSON.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import device


def main() -> int:
    simulated = device.enable(triton=os.environ.get("SIMULATED_TRITON") == "1")
    from alignkit.cli import main as command

    code = command()
    print(json.dumps(asdict(simulated)), flush=True)
    os._exit(code)  # the simulated device's threads do not end by themselves


if __name__ == "__main__":
    raise SystemExit(main())
