"""The beginning of a team: the group of processes, its board, and the watch of this process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from alignkit.errors import Problem, RecipeError, RunFailed
from alignkit.io.leaving import leave
from alignkit.runs.world import NOT_BY_ACCELERATE, World
from alignkit_distributed.kv_store import Board, Failure
from alignkit_distributed.process_group import Processes
from alignkit_distributed.reducer import OtherFailed, ProcessReducer
from alignkit_distributed.sharded_forward import LockstepReducer
from alignkit_distributed.watch import Watch

if TYPE_CHECKING:
    from alignkit.recipe.schema import Shard

LONGEST = timedelta(hours=6)  # that a process computes while the others wait for it
WORD = 3.0  # seconds in which a process that fails has said why


def join(
    world: World, devices: set[str], patience: float, say: Callable[[str], None], shard: Shard | None = None
) -> Processes:
    """Wait for all processes of the run. devices: of its base models, as the recipe names them.

    shard: what lets each process hold a part of each base model; None: it holds the whole.

    Raises RecipeError if the devices do not suit several processes, and RunFailed if the processes do not meet.
    """
    from accelerate import PartialState

    if shard is not None:
        os.environ |= NOT_BY_ACCELERATE
    on_cpu = devices == {"cpu"} or not torch.cuda.is_available()
    _check_devices(devices, on_cpu)
    try:
        state = PartialState(cpu=on_cpu, timeout=LONGEST)
        board = Board()
    except (RuntimeError, ValueError, OSError) as error:
        raise RunFailed(f"process {world.process} did not reach the others: {error}") from None
    if state.num_processes != world.processes:  # it was made before, by something that knew of one process
        raise RunFailed(f"accelerate knows {state.num_processes} processes, but the launcher started {world.processes}")

    def end(text: str, code: int) -> None:
        say(f"error: {text}")
        leave(code)

    watch = Watch(board, world, patience, end)
    watch.start()

    def waiting() -> Iterator[None]:
        watch.waiting = True
        try:
            yield
        except (RuntimeError, OSError) as error:
            raise OtherFailed(_why(board, world, error)) from None
        finally:
            watch.waiting = False

    reducer = ProcessReducer(world.process, world.processes, state.device, waiting)
    check_alike(reducer.gather(shard))
    if shard is not None:
        reducer = LockstepReducer(world.process, world.processes, state.device, waiting)
    return Processes(world, reducer, board, watch)


def check_alike(cuts: Sequence[Shard | None]) -> None:
    """Raise RunFailed if processes cut their models differently: they would wait for each other in vain.

    cuts: what each process cuts with.
    """
    names = [shard or "nothing" for shard in cuts]
    for process, name in enumerate(names):
        if name != names[0]:
            text = f"process 0 cuts base models with {names[0]}, but process {process} with {name}"
            raise RunFailed(f"{text}\nhelp: start all with the same options of accelerate")


def _check_devices(devices: set[str], on_cpu: bool) -> None:
    if named := sorted(device for device in devices if ":" in device):
        text = f"'device: {named[0]}' is one device, but each process needs its own"
        raise RecipeError([Problem(text, help="leave 'device' out: each process takes a GPU of its own")])
    local, count = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if not on_cpu and local > count:
        text = f"{local} processes need {local} GPUs, but this machine has {count}"
        raise RecipeError([Problem(text, help=f"start {count}, or compute on the processor with model.device=cpu")])


def _why(board: Board, world: World, error: Exception) -> Failure:
    """The failure of the process whose connection is lost."""
    until = time.monotonic() + WORD
    while time.monotonic() < until:
        try:
            failure = board.failure()
        except (RuntimeError, OSError):
            break
        if failure is not None and failure.process != world.process:
            return failure
        time.sleep(0.1)
    others = [str(process) for process in range(world.processes) if process != world.process]
    which = others[0] if len(others) == 1 else f"one of {', '.join(others)}"
    closed = "closed by peer" in str(error) or "reset by peer" in str(error)
    more = "" if closed else f" ({(str(error).splitlines() or [type(error).__name__])[0][:200]})"
    text = f"it has died without a word, as a process does that is killed or that runs out of memory{more}"
    return Failure(int(others[0]), text, 1) if len(others) == 1 else Failure(-1, f"{which}: {text}", 1)
