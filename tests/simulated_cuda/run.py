"""alignkit's command on the simulated device: `python tests/simulated_cuda/run.py run
recipes/smoke.yaml --out DIR`.

SIMULATED_TRITON=1: it compiles attention. Prints what was counted as the last line, in JSON.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import device
import torch

# A simulation that allows all finds nothing.
REFUSED = {
    "operators": lambda cpu, cuda: cuda + cpu,
    "lists": lambda cpu, cuda: torch.cat([cuda, cpu]),
    "indices": lambda cpu, cuda: cpu[cuda[0].long()],
    "a number from the host": lambda cpu, cuda: torch.zeros(()).add_(cuda.sum()),
    "arrays": lambda cpu, cuda: cuda.numpy(),
}


def main() -> int:
    simulated = device.enable(triton=os.environ.get("SIMULATED_TRITON") == "1")
    cpu = torch.arange(4.0).view(2, 2) % 2
    for name, mixed in REFUSED.items():
        with suppress(RuntimeError, TypeError):
            mixed(cpu, cpu.to("cuda"))
            sys.exit(f"allowed: {name}")
    from alignkit.cli import main as command

    code = command()
    print(json.dumps(vars(simulated)), flush=True)
    os._exit(code)  # the simulated device's threads do not end by themselves


if __name__ == "__main__":
    raise SystemExit(main())
