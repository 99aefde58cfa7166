"""Starts the processes of a run on this machine with accelerate's launcher, and passes signals and the exit code on."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import psutil

from alignkit.errors import RunFailed
from alignkit.stopping import handling

PASSED_ON = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
QUIT = "SIGQUIT"  # the one signal that torch's launcher handles itself


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `alignkit ARGUMENTS` in several processes; returns the exit code of the first that failed, or 0.

    Raises RunFailed if a process was killed, or if accelerate cannot start them.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in ("torch.distributed.elastic", "torch.distributed.run", "accelerate"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # each process says itself what is wrong
    given = launch_command_parser().parse_args([*_options(processes), "-m", "alignkit", *arguments])
    given.signals_to_handle = QUIT
    try:
        with _passing_on(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            launch_command(given)
    except ChildFailedError as error:
        return _exit_code(error)
    except (RuntimeError, ValueError, OSError) as error:
        raise RunFailed(f"accelerate cannot start {processes} processes: {error}") from error
    return 0


def _options(processes: int) -> list[str]:
    """Of `accelerate launch`. The port is free: two runs on one machine must not meet."""
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (psutil.cpu_count(logical=False) or 1) // processes))
    return [
        "--multi_gpu",  # which starts processes on CPUs, too
        f"--num_processes={processes}",
        "--num_machines=1",
        "--main_process_port=0",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        f"--num_cpu_threads_per_process={threads}",
    ]


def _exit_code(error: Any) -> int:
    """Of the process that failed first. Raises RunFailed if a signal ended it, so that it could not say why."""
    rank, failure = error.get_first_failure()
    code = int(failure.exitcode)
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    why = "; its memory may have run out" if name == "SIGKILL" else ""
    raise RunFailed(f"process {rank} was ended by {name}{why}; the same command resumes the run")


@contextmanager
def _passing_on() -> Iterator[None]:
    """Let signals go to every process: each stops at the same step."""

    def pass_on(number: int, _frame: FrameType | None) -> None:
        for child in psutil.Process().children(recursive=True):
            if child.name() and "alignkit" in " ".join(child.cmdline()):
                child.send_signal(number)

    try:
        with handling([getattr(signal, name) for name in PASSED_ON if hasattr(signal, name)], pass_on):
            yield
    finally:
        sys.stderr.flush()
