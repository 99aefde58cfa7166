"""While others are busy, OpenMP has more threads than cores; results stay the same."""

import os
import subprocess
import sys

import pytest

from alignkit_plugins.backends.shared_cores import teams_above
from tests.patience import PATIENCE

WATCHED = """
import hashlib, os, sys, time
import psutil, torch
from alignkit_plugins.backends import shared_cores

def product():
    draws = torch.Generator().manual_seed(0)
    a, b = torch.randn(300, 400, generator=draws), torch.randn(400, 500, generator=draws)
    return hashlib.sha256((a @ b).numpy().tobytes()).hexdigest()

def threads(than):
    while psutil.Process().num_threads() != than:
        time.sleep(0.01)
    return than

shared_cores.PAUSE = 0.01
others, clock = 0.0, 0.0
def seconds_of_others(cores):
    global clock
    before, clock = clock, time.monotonic()
    seconds_of_others.total += others * (clock - before)
    return seconds_of_others.total
seconds_of_others.total = 0.0
shared_cores.seconds_of_others = seconds_of_others
os.sched_getaffinity = lambda process: {0, 1}

quiet = product()
alone = psutil.Process().num_threads()
shared_cores.share_cores()
shared_cores.share_cores()
print(threads(alone + 1) - alone)  # one watcher
others = 1.0
print(threads(alone + 3) - alone)  # a team: its first thread and another
print(product() == quiet)
others = 0.2
print(threads(alone + 1) - alone)
"""


def test_while_others_are_busy_there_are_more_threads_than_cores() -> None:
    process = subprocess.run(
        [sys.executable, "-c", WATCHED],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert process.stdout.split() == ["1", "3", "True", "1"], process.stderr


@pytest.mark.parametrize(
    ("cores", "threads"), [(cores, threads) for cores in range(1, 9) for threads in range(2, 9)]
)
def test_as_few_teams_as_make_more_threads_than_cores(cores: int, threads: int) -> None:
    teams = teams_above(cores, threads)
    counted = 1 + (teams + 1) * (threads - 1)
    assert counted > cores
    assert teams == 1 or counted - (threads - 1) <= cores


def test_a_single_thread_starts_no_watcher() -> None:
    code = (
        "import threading; from alignkit_plugins.backends.shared_cores import share_cores; share_cores(); "
        "print(threading.active_count())"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert output.strip() == "1"
