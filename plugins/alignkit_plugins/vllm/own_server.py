"""A server of a run's own, on the loopback interface. It ends with the run, however that ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from alignkit.errors import RunFailed

ENDING = 25.0  # seconds for a server to end; the guard kills it before that
# For the server to end before the guard kills it, in seconds
GUARDED = float(os.environ.get("ALIGNKIT_GUARD_SECONDS", "15"))
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

# pydantic's errors say what is wrong in the next line.
ERROR = re.compile(r"\w*Error: (?:.*validation error.*\n)?.*")

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
                    "alignkit_plugins.vllm.own_server",
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
        began, announced = time.monotonic(), False
        while not self._answers(path):
            if self.ended:
                raise RunFailed(f"the server of {self.name} did not start{self.explain()}")
            if time.monotonic() - began > timeout:
                self.end()
                raise RunFailed(
                    f"the server of {self.name} was not ready after {timeout:.0f} seconds; raise "
                    f"'timeout'{self.explain()}"
                )
            if not announced:
                say(f"starting {self.name}, which can take minutes; its log is {self.log}")
                announced = True
            time.sleep(POLL)

    def _answers(self, path: str) -> bool:
        import httpx2

        try:  # without proxies of the environment, which are for the internet
            answer = httpx2.get(f"{self.url}{path}", timeout=POLL * 4, trust_env=False)
        except httpx2.HTTPError:  # no answer, or one of another program
            return False
        return answer.is_success

    def explain(self) -> str:
        """How it ended, if it did, and the last error in its log; to end a sentence with."""
        text = self.log.read_text("utf-8", "replace").strip()
        last = text.rpartition("\n")[2].strip() or "nothing"
        for error in ERROR.findall(text):
            # Others wait for the process that failed, and say: "see root cause above".
            if "root cause" not in error and "stack trace" not in error:
                last = " ".join(error.split())
        how = f"; it ended with exit code {self._guard.poll()}" if self.ended else ""
        return f"{how}; its log {self.log} says: {last[:500]}"

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


def guard(run: int, command: list[str]) -> int:
    """Run a command until it ends or the run does. Returns its exit code.

    A process between a run and its server: it ends the server with the run, also if the run is
    killed. run: its process id.
    """
    signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    # A session of its own: with all processes that it starts, it can be ended at once.
    try:
        server = subprocess.Popen(command, start_new_session=True)
    except OSError as error:
        print(f"OSError: cannot start {command[0]}: {error.strerror}")
        return 127
    while server.poll() is None and not signals and os.getppid() == run:
        time.sleep(POLL)
    until = time.monotonic() + GUARDED
    if server.poll() is None:
        server.terminate()
    while server.poll() is None and time.monotonic() < until:
        time.sleep(POLL / 5)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)  # whatever is left of it
    return server.wait()


if __name__ == "__main__":
    sys.exit(guard(int(sys.argv[1]), sys.argv[2:]))
