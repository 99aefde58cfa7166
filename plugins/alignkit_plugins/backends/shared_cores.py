"""Leaving the cores to other programs while torch's threads wait for each other.

A waiting OpenMP thread spins, which is fastest on a quiet machine. When another program needs a core,
the spinning thread keeps the thread that it waits for from running, and two cores do the work of a
fifth of one. libgomp spins only briefly in a process that has more OpenMP threads than cores. So this
process keeps sleeping teams of such threads while others are busy. The number of threads that compute
a product never changes, and so no result does.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence

import psutil
import torch

PAUSE = 0.5  # seconds between two looks at the machine
TOLERATED = 0.4  # cores that others may use although all cores are ours
SEVERAL_THREADS = 2**17  # numbers, which torch fills with more than one thread

_watched: int | None = None  # the process that has a watcher; its forks have none


def share_cores() -> None:
    """Start to watch the machine, once per process. A single thread never waits for another."""
    global _watched
    several = torch.get_num_threads() > 1
    if several and _watched != os.getpid() and hasattr(os, "sched_getaffinity"):
        _watched = os.getpid()
        threading.Thread(target=_watch, name="share_cores", daemon=True).start()


def _watch() -> None:
    cores, threads = sorted(os.sched_getaffinity(0)), torch.get_num_threads()
    sleepers = Sleepers(teams_above(len(cores), threads))
    used, since = seconds_of_others(cores), time.monotonic()
    while True:
        time.sleep(PAUSE)
        used_before, used = used, seconds_of_others(cores)
        before, since = since, time.monotonic()
        others = (used - used_before) / (since - before)
        sleepers.keep(others + threads > len(cores) + TOLERATED)


def seconds_of_others(cores: Sequence[int]) -> float:
    """Seconds for which all other processes have used these cores."""
    times = psutil.cpu_times(percpu=True)
    used = [times[core] for core in cores if core < len(times)]
    return sum(core.user + core.nice + core.system for core in used) - sum(
        psutil.Process().cpu_times()[:2]
    )


def teams_above(cores: int, threads: int) -> int:
    """How many further teams of `threads` make more threads than cores. libgomp does not count the
    first thread of a further team.
    """
    return max(1, (cores - 1) // (threads - 1))


class Sleepers:
    """Teams of OpenMP threads that have nothing to do.

    teams: their number while they are wanted.
    """

    def __init__(self, teams: int):
        self.teams = teams
        self._end: threading.Event | None = None

    def keep(self, wanted: bool) -> None:
        """Start the teams or let them end, unless that is what they do."""
        if wanted and self._end is None:
            self._end = threading.Event()
            for _ in range(self.teams):
                threading.Thread(target=_sleep, args=(self._end,), daemon=True).start()
        elif not wanted and self._end is not None:
            self._end.set()
            self._end = None


def _sleep(end: threading.Event) -> None:
    torch.zeros(SEVERAL_THREADS)  # starts this thread's team, which ends with the thread
    end.wait()
