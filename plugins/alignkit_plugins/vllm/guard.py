"""A process between a run and its server: it ends the server with the run, also if the run is
killed.

python -m alignkit_plugins.vllm.guard PROCESS COMMAND ...      PROCESS: the run's id
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

POLL = 0.5  # seconds between two looks at the run
# For the server to end before it is killed
ENDING = float(os.environ.get("ALIGNKIT_GUARD_SECONDS", "15"))


def main(run: int, command: list[str]) -> int:
    """Run a command until it ends or the run does. Returns its exit code."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    # A session of its own: with all processes that it starts, it can be ended at once.
    try:
        server = subprocess.Popen(command, start_new_session=True)
    except OSError as error:
        print(f"OSError: cannot start {command[0]}: {error.strerror}")
        return 127
    while server.poll() is None and not asked and os.getppid() == run:
        time.sleep(POLL)
    until = time.monotonic() + ENDING
    if server.poll() is None:
        server.terminate()
    while server.poll() is None and time.monotonic() < until:
        time.sleep(POLL / 5)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)  # whatever is left of it
    return server.wait()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
