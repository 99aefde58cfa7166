"""The process of one side: it loads its model once, then runs a round per request. Its peak memory
is its own.

Requests are JSON lines on stdin, answers JSON lines on stdout; the output of libraries is
redirected to stderr. The first request is the check: an untimed round on fixed inputs, whose losses
are compared between the sides.
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
    """The task of one side.

    function: `module:function` of this package. short: tiny sizes. source: folder of the base
    model. adapters: folder of `policy` and `reward`, the initial weights of both sides.
    checkpointing: the peer recomputes activations. options: of the benchmark, for functions that
    several benchmarks share.
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
    """Lets a side wait for its turn and report the result of a round."""

    def __init__(self, requests: TextIO, answers: TextIO):
        self._requests, self._answers = requests, answers
        self._began = 0.0
        self._resting: int | None = None
        self.checking = False
        self.evidence: Any = None  # during the check of the second side: the samples of the first

    def begin(self) -> None:
        """Wait for a request and start the clock. Raises `SystemExit` if there are no more."""
        line = self._requests.readline()
        if not line:
            raise SystemExit(0)
        request = json.loads(line)
        self.checking, self.evidence = request["check"], request["evidence"]
        if self._resting is None:
            self._resting = resident()
            _forget_peak()
        gc.collect()
        _synchronize()
        self._began = time.perf_counter()

    def end(
        self,
        units: float,
        losses: Mapping[str, float],
        floor: Sequence[tuple[float, float]] = (),
        evidence: Any = None,
        memory: int | None = None,
    ) -> None:
        """Stop the clock and send the answer.

        units: the amount of work that the rate counts. floor: pieces of work as (FLOP, bytes), see
        `floor.Work`. memory: in bytes; by default the peak of the process.
        """
        _synchronize()
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


def _synchronize() -> None:
    if _on_gpu():
        sys.modules["torch"].cuda.synchronize()


def _status(name: str) -> int | None:
    """An entry of /proc/self/status in bytes; None if the file does not exist."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def resident() -> int:
    """Memory in use, in bytes: the GPU's if there is one."""
    if _on_gpu():
        return int(sys.modules["torch"].cuda.memory_allocated())
    return _status("VmRSS") or 0


def _forget_peak() -> None:
    """Reset the peak, because loading a model may briefly need more memory than the work."""
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

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    # Libraries that print must not corrupt the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    module, _, function = job.function.partition(":")
    getattr(importlib.import_module(f"benchmarks.{module}"), function)(
        job, Gate(sys.stdin, answers)
    )


if __name__ == "__main__":
    main()
