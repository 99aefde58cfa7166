"""Short notes that the processes of a run leave for each other, on the server of the launcher.

It does not wait: a note can be read while its reader computes, and after its writer has died.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, TCPStore

ANSWER = timedelta(seconds=30)  # within which the server must reply
FAILED = "failed"


@dataclass(frozen=True)
class Failure:
    """Why a process ended: what it has printed, and the exit code."""

    process: int
    message: str
    exit_code: int

    @property
    def first_line(self) -> str:
        return self.message.splitlines()[0].removeprefix("error: ") if self.message else "no message"


class Board:
    """The notes of one run, by name."""

    def __init__(self, environment: Mapping[str, str] = os.environ):
        """Connect to the server. Raises RuntimeError if there is none."""
        self._store = self.connect(environment)

    @staticmethod
    def connect(environment: Mapping[str, str]) -> PrefixStore:
        port = int(environment["MASTER_PORT"])
        server = TCPStore(environment["MASTER_ADDR"], port, None, False, ANSWER, wait_for_workers=False)
        return PrefixStore(f"alignkit-{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}", server)

    def write(self, name: str, value: Any) -> None:
        self._store.set(name, json.dumps(value))

    def read(self, name: str) -> Any:
        """What was written last; None if nothing was."""
        return json.loads(self._store.get(name)) if self._store.check([name]) else None

    def fail(self, failure: Failure) -> None:
        """Write why this process ends. The first to fail is the one that counts."""
        if self._store.add("failures", 1) == 1:
            self.write(FAILED, asdict(failure))

    def failure(self) -> Failure | None:
        """Why the first process that failed has ended."""
        found = self.read(FAILED)
        return Failure(**found) if found else None
