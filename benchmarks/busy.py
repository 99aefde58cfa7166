"""How much longer training takes on a busy machine: `python -m benchmarks.busy [STEPS]`.

SFT steps of the quick start, alone, next to one and two processes that compute without end, and two
runs at once, each with alignkit's own way to share cores, and with that turned off for several
settings of libgomp. Seconds are those between the first step and the last.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.markdown import markdown_table

# What runs next to the measured run: processes that compute without end, and further runs.
MACHINES = {"quiet": (0, 0), "one busy process": (1, 0), "two": (2, 0), "two runs at once": (0, 1)}
# Environments; a None leaves sharing on.
SETTINGS: dict[str, Mapping[str, str] | None] = {
    "alignkit": None,
    "libgomp's default": {},
    **{f"GOMP_SPINCOUNT={count}": {"GOMP_SPINCOUNT": str(count)} for count in (100, 1000, 10_000)},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
RUN = """
import sys
from alignkit.cli import main
from alignkit_plugins.backends import shared_cores
if sys.argv.pop(1) == "off":
    shared_cores.TOLERATED = float("inf")
raise SystemExit(main(sys.argv[1:]))
"""


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Processes that compute without end."""
    started = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)
    ]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def start(folder: Path, steps: int, setting: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
    """Start SFT of the quick start for some steps."""
    limits = [f"stages.sft.max_steps={steps}", "--until", "sft", "--out", str(folder)]
    sharing = "on" if setting is None else "off"
    return subprocess.Popen(
        [sys.executable, "-c", RUN, sharing, "run", "quickstart", *limits],
        env={**os.environ, "ALIGNKIT_REPORT": "0", "ALIGNKIT_REUSE": "0", **(setting or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def seconds(setting: Mapping[str, str] | None, loops: int, others: int, steps: int) -> float:
    """From the end of the first step to that of the last, in the slowest run."""
    with tempfile.TemporaryDirectory() as folder, busy(loops):
        folders = [Path(folder, str(number)) for number in range(1 + others)]
        for process in [start(place, steps, setting) for place in folders]:
            process.wait()
        rows = [(place / "sft" / "metrics.jsonl").read_text().splitlines() for place in folders]
    times = [[json.loads(row)["time"] for row in rows_of_run] for rows_of_run in rows]
    return float(max(last - first for first, *_, last in times))


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    table = []
    for name, setting in SETTINGS.items():
        taken = [seconds(setting, *machine, steps) for machine in MACHINES.values()]
        table.append([name, *(f"{value:.1f} s" for value in taken)])
        print(table[-1], file=sys.stderr, flush=True)
    print(markdown_table(["", *MACHINES], table))


if __name__ == "__main__":
    main()
