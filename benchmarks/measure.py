"""Two processes that take turns: medians of speed and memory, their ratios, and whether the losses
agree.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

from benchmarks.catalogue import Benchmark
from benchmarks.floor import seconds
from benchmarks.worker import Job

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = {name: Path(sys.executable) for name in ("trl", "vllm")} | {
    "ppo": ROOT / ".venv-bench-ppo" / "bin" / "python"
}
OFFLINE = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}
# The largest relative difference between losses, and the size below which the difference is
# relative to that size.
TOLERANCES = {"float32": (1e-3, 0.01), "bfloat16": (1e-2, 1.0)}
LOG_LINES = 15  # shown from the end of a failed worker's log


class Failed(Exception):
    """A benchmark failed; the message says why."""


class Side:
    """One side of a benchmark, in its own process."""

    def __init__(self, job: Job, python: Path = Path(sys.executable)):
        self.job = job
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 closed in __exit__
        command = [str(python), "-m", "benchmarks.worker", json.dumps(asdict(job))]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env={**os.environ, **OFFLINE},
        )

    def ask(self, check: bool = False, evidence: Any = None) -> dict[str, Any]:
        """Run one round. Raises `Failed` with the end of the log if the process dies."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):  # the process has died; its log says why
            self._process.stdin.write(json.dumps({"check": check, "evidence": evidence}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise Failed(self._fault())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _fault(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        log = "".join(self._log.readlines()[-LOG_LINES:]).strip()
        killed = " (killed, perhaps out of memory)" if code == -9 else ""
        return f"{self.job.function} exited with code {code}{killed}\n{log}"

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # without further requests the process exits
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()


def ask_once(job: Job) -> Any:
    """Run a worker's function for one round and return its evidence."""
    with Side(job) as side:
        return side.ask()["evidence"]


def run(benchmark: Benchmark, job: Job, rounds: int, rates: Mapping[str, Any]) -> dict[str, Any]:
    """Measure one benchmark and return its row. job: shared by both sides. Raises `Failed`."""
    job = replace(job, options=dict(benchmark.options))
    with ExitStack() as stack:
        ours = stack.enter_context(
            Side(replace(job, function=benchmark.ours, dtype=benchmark.dtype))
        )
        theirs = replace(job, function=benchmark.peer, dtype=benchmark.peer_dtype)
        if benchmark.peer_options is not None:
            theirs = replace(theirs, options=dict(benchmark.peer_options))
        peer = stack.enter_context(Side(theirs, ENVIRONMENTS[benchmark.environment]))
        checks = [first := ours.ask(check=True), peer.ask(check=True, evidence=first["evidence"])]
        answers = []
        for number in range(1, rounds + 1):
            answers.append((ours.ask(), peer.ask()))
            took = ", peer ".join(f"{answer['seconds']:.3g} s" for answer in answers[-1])
            print(f"  round {number} of {rounds}: alignkit {took}", file=sys.stderr)
    return row(benchmark, checks, answers, rates)


def row(
    benchmark: Benchmark,
    checks: Sequence[Mapping[str, Any]],
    answers: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    rates: Mapping[str, Any],
) -> dict[str, Any]:
    """The results of a benchmark. ours, peer: medians in units per second; memory: bytes at the
    peak.
    """
    ours, peer = ([round_[side] for round_ in answers] for side in (0, 1))
    speeds = [[answer["units"] / answer["seconds"] for answer in side] for side in (ours, peer)]
    ratios = [a / b for a, b in zip(*speeds, strict=True)]
    memory = [_memory(benchmark, side) for side in (ours, peer)]
    least = seconds(ours[0]["floor"], rates, benchmark.dtype)
    took = [median(answer["seconds"] for answer in side) for side in (ours, peer)]
    difference: float | None = None
    if benchmark.same_loss:
        difference = relative_difference(
            checks[0]["losses"], checks[1]["losses"], benchmark.precision
        )
    return {
        "name": benchmark.name,
        "ours": median(speeds[0]),
        "peer": median(speeds[1]),
        "unit": benchmark.unit,
        "ratio": median(ratios),  # per round, so that a slowdown of the machine affects both sides
        "memory_ratio": memory[0] / memory[1] if memory[1] else None,
        "floor_ratio": took[0] / least if least else None,
        "rounds": len(answers),
        "ratios": ratios,
        "ours_seconds": took[0],
        "peer_seconds": took[1],
        "ours_memory": memory[0],
        "peer_memory": memory[1],
        "dtype": benchmark.dtype,
        "peer_name": benchmark.peer_name,
        "ours_losses": checks[0]["losses"],
        "peer_losses": checks[1]["losses"],
        "loss_difference": difference
        if difference is not None and math.isfinite(difference)
        else None,
        "losses_agree": difference is None or difference <= TOLERANCES[benchmark.precision][0],
    }


def relative_difference(
    ours: Mapping[str, float], peer: Mapping[str, float], precision: str
) -> float:
    """The largest relative difference between losses of the same name; infinite if one is missing
    or nan.

    In bfloat16, only "loss" is compared: a gradient norm or a KL summed over tokens has fewer
    correct digits.
    """
    least = TOLERANCES[precision][1]
    if "loss" not in ours or ours.keys() != peer.keys():
        return math.inf
    names = ["loss"] if precision == "bfloat16" else list(ours)
    differences = [
        abs(ours[name] - peer[name]) / max(abs(ours[name]), abs(peer[name]), least)
        for name in names
    ]
    return max(differences) if all(map(math.isfinite, differences)) else math.inf


def _memory(benchmark: Benchmark, answers: Sequence[Mapping[str, Any]]) -> int:
    """The peak of the process, or its growth over the memory before the work, in bytes."""
    peak = max(answer["memory"] for answer in answers)
    return int(peak - answers[0]["resting"]) if benchmark.extra_memory else int(peak)
