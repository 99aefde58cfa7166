"""The process of one side: it builds once, then works a round whenever it is asked, so its peak memory is its own.

Requests come as JSON lines on stdin, answers go as JSON lines to stdout; what libraries print goes to stderr. The
first request is the check: a round on fixed inputs, untimed, whose losses both sides are compared by.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO


@dataclass(frozen=True)
class Job:
    """What a side is told. function: `module:function` in this package. source: folder of the base model.

    adapters: folder of `policy` and `reward`, the same starting weights for both sides. short: the tiny sizes.
    checkpointing: the peer recomputes activations. options: what tells apart benchmarks that share code.
    """

    function: str
    dtype: str = "float32"
    short: bool = False
    source: str = ""
    adapters: str = ""
    checkpointing: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def adapter(self, name: str) -> Path:
        return Path(self.adapters) / name


class Gate:
    """Where a side waits for its turn, and tells what the round gave."""

    def __init__(self, requests: TextIO, answers: TextIO):
        self._requests, self._answers = requests, answers
        self._began = 0.0
        self._resting: int | None = None
        self.checking = False
        self.evidence: Any = None  # in the check of the second side: what the first one sampled

    def begin(self) -> None:
        """Wait for a request and start the clock. Raises SystemExit when there are no more."""
        line = self._requests.readline()
        if not line:
            raise SystemExit(0)
        request = json.loads(line)
        self.checking, self.evidence = request["check"], request["evidence"]
        if self._resting is None:
            self._resting = resident()
            _forget_peak()
        gc.collect()
        _synchronise()
        self._began = time.perf_counter()

    def end(
        self,
        units: float,
        losses: Mapping[str, float],
        floor: Sequence[tuple[float, float]] = (),
        evidence: Any = None,
        memory: int | None = None,
    ) -> None:
        """Stop the clock. units: what the rate counts. floor: pieces of work as (FLOP, bytes), see `floor.Work`.

        memory: in bytes, where the peak is not what is meant.
        """
        _synchronise()
        seconds = time.perf_counter() - self._began
        answer = {
            "seconds": seconds,
            "units": units,
            "losses": {name: float(value) for name, value in losses.items()},
            "floor": [list(piece) for piece in floor],
            "evidence": evidence,
            "memory": _peak() if memory is None else memory,
            "resting": self._resting if memory is None else 0,
        }
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()


def _on_gpu() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_available()


def _synchronise() -> None:
    if _on_gpu():
        sys.modules["torch"].cuda.synchronize()


def _status(name: str) -> int | None:
    """A line of /proc/self/status, in bytes; None where there is no such file."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def resident() -> int:
    """Memory held now, bytes: the GPU's where there is one."""
    if _on_gpu():
        return int(sys.modules["torch"].cuda.memory_allocated())
    return _status("VmRSS") or 0


def _forget_peak() -> None:
    """From here on the peak is that of the work; loading a model may for a moment take more."""
    if _on_gpu():
        sys.modules["torch"].cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> int:
    if _on_gpu():
        return int(sys.modules["torch"].cuda.max_memory_allocated())
    peak = _status("VmHWM")
    if peak is not None:
        return peak
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    # What a library prints must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    module, _, function = job.function.partition(":")
    getattr(importlib.import_module(f"benchmarks.{module}"), function)(job, Gate(sys.stdin, answers))


if __name__ == "__main__":
    main()
