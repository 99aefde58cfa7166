"""The command line in several processes, forked from the test so that none of them imports torch
again.

They are real processes that talk through gloo. The environment is what accelerate's launcher sets,
and like it, this one ends the others as soon as one has failed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from torch.distributed import TCPStore

from alignkit import cli

SECONDS = 240.0  # longer than any test needs, even on a busy machine
# From the first process that fails until the others get SIGTERM: a busy machine is late to let them
# end
GRACE = 1.0
KILL = 10.0  # from the same moment until SIGKILL


@dataclass
class Ended:
    """How a process ended: its exit code, or the negative number of the signal that ended it, and
    what it printed.
    """

    code: int
    out: str
    err: str
    seconds: float  # after the first process ended


# It also asks transformers to load weights in process 0 only: the others would have none.
SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}


def together(
    folder: Path,
    arguments: Sequence[str | Path],
    processes: int = 2,
    variables: Sequence[Mapping[str, str]] = (),
    folders: Sequence[Path] = (),
    sharded: bool = False,
) -> list[Ended]:
    """Run `alignkit ARGUMENTS` in so many processes. variables, folders: environment and current
    folder of each.

    folder: for what they print. sharded: as accelerate's launcher asks for with --use_fsdp.
    """
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    sys.stdout.flush()
    sys.stderr.flush()
    pids: list[int] = []
    for rank in range(processes):
        if (pid := os.fork()) == 0:
            own = {**(SHARDED if sharded else {}), **(variables[rank] if variables else {})}
            _work(folder, list(map(str, arguments)), rank, processes, server.port, own, folders)
        pids.append(pid)
    codes = _wait(pids)
    ended = []
    for rank, (code, seconds) in enumerate(codes):
        out, err = (
            (folder / f"{name}-{rank}").read_text(encoding="utf-8", errors="replace")
            for name in ("out", "err")
        )
        ended.append(Ended(code, out, err, seconds))
    return ended


def _work(
    folder: Path,
    arguments: list[str],
    rank: int,
    processes: int,
    port: int,
    variables: Mapping[str, str],
    folders: Sequence[Path],
) -> None:
    code = 99
    try:
        for number, name in ((1, "out"), (2, "err")):
            file = os.open(folder / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
        sys.stdout, sys.stderr = (
            open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            for number in (1, 2)
        )
        # An earlier test may have made one process of it
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TOKENIZERS_PARALLELISM": "false",
            **variables,
        }
        torch.set_num_threads(1)
        if folders:
            os.chdir(folders[rank])
        code = cli.main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(pids: Sequence[int]) -> list[tuple[int, float]]:
    codes: dict[int, tuple[int, float]] = {}
    began, first, sent = time.monotonic(), 0.0, 0
    while len(codes) < len(pids):
        time.sleep(0.02)
        now = time.monotonic()
        for pid in pids:
            if pid in codes:
                continue
            found, status = os.waitpid(pid, os.WNOHANG)
            if not found:
                continue
            code = os.waitstatus_to_exitcode(status)
            codes[pid] = code, now - (first or now)
            if code and not first:
                first = now
        left, since = [pid for pid in pids if pid not in codes], now - first if first else 0.0
        if (since > KILL or now - began > SECONDS) and sent != signal.SIGKILL:
            _signal(left, sent := signal.SIGKILL)
        elif since > GRACE and not sent:
            _signal(left, sent := signal.SIGTERM)
    return [codes[pid] for pid in pids]


def _signal(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)


def run_together(
    work: Path, recipe: Path, out: str, *overrides: str, processes: int = 2, sharded: bool = False
) -> None:
    """Run a recipe to its end; only process 0 speaks."""
    ended = together(work, ["run", recipe, *overrides, "--out", out], processes, sharded=sharded)
    assert [process.code for process in ended] == [0] * processes, ended
    assert all(process.out == process.err == "" for process in ended[1:]), "only process 0 speaks"
