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
from collections.abc import Sequence
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import NamedTuple

from accelerate.state import AcceleratorState
from torch.distributed import TCPStore

from alignkit import cli
from tests.killed import as_new
from tests.patience import PATIENCE

# From the first process that fails until the others get SIGTERM, and from there until SIGKILL: a
# busy machine is late to let them end
GRACE, KILL = 1.0, 10.0


class Ended(NamedTuple):
    """How a process ended: its exit code, or the negative number of the signal that ended it, and
    what it printed.
    """

    code: int | None
    out: str
    err: str


# It also asks transformers to load weights in process 0 only: the others would have none.
SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}


def together(
    arguments: Sequence[str | Path], processes: int = 2, sharded: bool = False, **variables: str
) -> list[Ended]:
    """Run `alignkit ARGUMENTS` in so many processes, which print to files of the current folder.

    In arguments and variables, which are of the environment, {rank} is the number of the process.
    sharded: as accelerate's launcher asks for with --use_fsdp.
    """
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    team = []
    for rank in range(processes):
        environment = {
            **(SHARDED if sharded else {}),
            **dict.fromkeys(("RANK", "LOCAL_RANK"), "{rank}"),
            **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(server.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TOKENIZERS_PARALLELISM": "false",
            **variables,
        }
        own = {name: text.replace("{rank}", str(rank)) for name, text in environment.items()}
        words = [str(word).replace("{rank}", str(rank)) for word in arguments]
        team.append(ForkProcess(target=_work, args=(words, str(rank), own)))
        team[-1].start()
    _wait(team)
    return [
        Ended(process.exitcode, *(Path(f"{name}-{rank}").read_text() for name in ("out", "err")))
        for rank, process in enumerate(team)
    ]


def _work(words: list[str], rank: str, environment: dict[str, str]) -> None:
    code = 99
    try:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{name}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        as_new()
        # An earlier test may have made one process of it
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ |= environment
        code = cli.main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(team: Sequence[ForkProcess]) -> None:
    """Until all have ended, or one has failed and the others have been ended."""
    until = time.monotonic() + PATIENCE
    while any(process.is_alive() for process in team) and time.monotonic() < until:
        if any(process.exitcode for process in team):
            break
        time.sleep(0.02)
    killed = any(process.exitcode == -signal.SIGKILL for process in team)
    for process in team:
        process.join(KILL if killed else GRACE)  # nobody says why: the others find it themselves
    for process in team:
        process.terminate()
        process.join(KILL)
        process.kill()
        process.join()


def run_together(
    recipe: Path, out: str, *words: str, processes: int = 2, sharded: bool = False
) -> str:
    """Run a recipe to its end; only process 0 speaks, and what it says is returned."""
    ended = together(["run", recipe, *words, "--out", out], processes, sharded)
    assert [process.code for process in ended] == [0] * processes, ended
    assert all(process.out == process.err == "" for process in ended[1:]), "only process 0 speaks"
    return ended[0].err
