"""A server of a run's own, on the loopback interface. It ends with the run, however that ends."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from secrets import token_hex

from alignkit.errors import RunFailed

ENDING = 25.0  # seconds for a server to end; the guard kills it before that
POLL = 0.5  # seconds between two looks at whether it is ready
LAUNCHED = (
    "ACCELERATE_",
    "GROUP_",
    "LOCAL_RANK",
    "LOCAL_WORLD",
    "MASTER_",
    "RANK",
    "ROLE_",
    "TORCHELASTIC_",
    "WORLD_",
)

_running: dict[tuple[str, ...], OwnServer] = {}
_kept: list[Path] = []  # the run's folder for logs, while there is a run


def keep_servers(folder: Path) -> None:
    """Let servers outlive the stage that started them, until `end_servers`. folder: for their
    logs.
    """
    _kept[:] = [folder]


def end_servers() -> None:
    """End the servers that were kept: the run is over."""
    _kept.clear()
    for server in list(_running.values()):
        server.end()


class OwnServer:
    """A server that a plugin starts, waits for and surely ends: also if the run is killed with
    `kill -9`.

    url: where it listens. key: random, to keep other users of the machine out. log: the file with
    what it prints.
    """

    @classmethod
    def of(
        cls,
        name: str,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, str] | None = None,
    ) -> OwnServer:
        """The running server of a command, which is started if there is none. It need not be ready:
        see `wait`.

        name: of the program, for messages. command: its words. In them, and in the values of
        environment, `{port}` and `{key}` are replaced; it must listen on 127.0.0.1. environment:
        variables besides those of this process. folder: for its log, outside of runs. Servers
        outlive their stage, because starting one may take minutes.
        """
        variables = environment or {}
        words = (*command, *(f"{key}={value}" for key, value in sorted(variables.items())))
        server = _running.get(words)
        if server is None or server.ended:
            server = _running[words] = cls(name, command, _kept[0] if _kept else folder, variables)
        return server

    def __init__(
        self, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]
    ):
        """Start another one; its arguments are those of `of`."""
        self.name, self.key, port = name, token_hex(), str(_free_port())
        self.url, self.log = f"http://127.0.0.1:{port}", folder / f"{name.lower()}-{port}.log"

        def filled(text: str) -> str:
            return text.replace("{port}", port).replace("{key}", self.key)

        folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("w", encoding="utf-8") as log:
            self._guard = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "alignkit_plugins.vllm.guard",
                    str(os.getpid()),
                    *map(filled, command),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**_outside(), **{name: filled(value) for name, value in environment.items()}},
                start_new_session=True,  # Ctrl-C is for the run, which ends the server
            )

    @property
    def ended(self) -> bool:
        return self._guard.poll() is not None

    def wait(self, timeout: float, say: Callable[[str], None], path: str = "/health") -> None:
        """Wait until it answers GET on a path. Raises RunFailed if it ends before, or after
        `timeout` seconds.
        """
        began = time.monotonic()
        while not self._answers(path):
            if self.ended:
                raise RunFailed(f"the server of {self.name} did not start{self.explain()}")
            if time.monotonic() - began > timeout:
                self.end()
                raise RunFailed(
                    f"the server of {self.name} was not ready after {timeout:.0f} seconds; raise "
                    f"'timeout'{self.explain()}"
                )
            if time.monotonic() - began < POLL:
                say(f"starting {self.name}, which can take minutes; its log is {self.log}")
            time.sleep(POLL)

    def _answers(self, path: str) -> bool:
        from http.client import HTTPException
        from urllib import request

        try:
            # Proxies of the environment are for the internet.
            with request.build_opener(request.ProxyHandler({})).open(
                f"{self.url}{path}", timeout=POLL * 4
            ):
                return True
        except (
            OSError,
            HTTPException,
        ):  # no answer, an error's (a URLError), or one of another program
            return False

    def explain(self) -> str:
        """How it ended, if it did, and the last error in its log; to end a sentence with."""
        lines = [
            line.strip()
            for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        ]
        # The last errors are often of those who wait for the process that failed: "see root cause
        # above". pydantic's say what is wrong in the next line.
        joined = [
            f"{one} {two}" if "validation error" in one else one
            for one, two in pairwise([*lines, ""])
        ]
        found = [re.search(r"\w*Error: .*", line) for line in joined]
        errors = [
            match[0]
            for match in found
            if match and not re.search(r"root cause|stack trace", match[0])
        ]
        errors = errors or [line for line in lines if line]
        how = f"; it ended with exit code {self._guard.poll()}" if self.ended else ""
        return f"{how}; its log {self.log} says: {errors[-1][:500] if errors else 'nothing'}"

    def release(self) -> None:
        """End it unless a run keeps it for other stages. For `Engine.close`."""
        if not _kept:
            self.end()

    def end(self) -> None:
        """End it with all processes that it has started."""
        for words in [words for words, server in _running.items() if server is self]:
            del _running[words]
        self._guard.terminate()
        try:
            self._guard.wait(ENDING)
        except subprocess.TimeoutExpired:
            self._guard.kill()


def _outside() -> dict[str, str]:
    """This process's environment, without what a launcher says of it: a server may have several
    processes, too.
    """
    return {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHED)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
