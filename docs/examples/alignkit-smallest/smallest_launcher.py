"""A launcher: alignkit's own, which also says how long the processes took.

There can be one only: run with `--no-plugin alignkit_distributed`.
"""

from __future__ import annotations

from time import monotonic

from alignkit import Add, hookimpl
from alignkit_plugins.processes.events import Accelerate  # type: ignore


class Timed(Accelerate):
    def launch(self, processes: int) -> int:
        began = monotonic()
        code = super().launch(processes)
        print(f"{processes} processes took {monotonic() - began:.0f} s")
        return code


@hookimpl
def register(add: Add) -> None:
    add("launcher", "timed", Timed, "says how long", default=True)
