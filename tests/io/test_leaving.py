"""A process that ends in time although a library waits for its own threads."""

from __future__ import annotations

import subprocess
import sys

import pytest
from patience import PATIENCE

HANGS = """
import sys, threading, time
from alignkit.io.leaving import end_within, leaving

from concurrent.futures import ThreadPoolExecutor

{hang}
end_within(0.2)
print("said", end="")
{end}
"""


THREAD = "threading.Thread(target=time.sleep, args=({},)).start()"  # not a daemon: the interpreter waits for it
POOL = "ThreadPoolExecutor().submit(time.sleep, 1e6)"  # so it does for a pool, and earlier


@pytest.mark.parametrize(("hang", "end", "code"), [(THREAD, "sys.exit(leaving(3))", 3), (POOL, "leaving(0)", 0)])
def test_a_thread_that_hangs_does_not_keep_the_process(hang: str, end: str, code: int) -> None:
    text = HANGS.format(hang=hang.format(1e6), end=end)
    done = subprocess.run([sys.executable, "-c", text], timeout=PATIENCE, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (code, b"said")


def test_a_process_of_somebody_else_is_left_alone() -> None:
    """Only the command line knows its exit code."""
    text = HANGS.format(hang=THREAD.format(1.5), end="import atexit; atexit.register(print, ' all')")
    done = subprocess.run([sys.executable, "-c", text], timeout=PATIENCE, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (0, b"said all\n")


def test_a_process_that_leaves_looks_for_no_garbage() -> None:
    """Among the objects of torch and transformers, Python would look for seconds."""
    text = "import gc; from alignkit.io.leaving import leaving; leaving(0); print(gc.get_freeze_count() > 1000)"
    assert subprocess.run([sys.executable, "-c", text], stdout=subprocess.PIPE).stdout == b"True\n"
