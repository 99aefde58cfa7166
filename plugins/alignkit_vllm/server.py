"""A server of a run's own, on the loopback interface. It ends with the run, however that ends."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from secrets import token_hex

from alignkit import EngineContext, RunFailed

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM reserves memory for
ENDING = 25.0  # seconds for a server to end; `guard` kills it before that
POLL = 0.5  # seconds between two looks at whether it is ready
# No reports to vLLM's authors, and adapters while it runs.
ENVIRONMENT = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_NO_USAGE_STATS": "1"}

_running: dict[tuple[str, ...], Server] = {}  # they outlive a stage, because starting one takes minutes
_folder: list[Path] = []  # of the run, while there is one


def run_begins(folder: Path) -> None:
    _folder[:] = [folder]


def run_ends() -> None:
    _folder.clear()
    for server in list(_running.values()):
        server.end()


def server_for(command: Sequence[str], flags: Sequence[str], context: EngineContext, timeout: float) -> Server:
    """A running server of the context's base, started if there is none. timeout: seconds until it must be ready."""
    rank = context.model.lora.r if context.model.lora else 1
    words = (
        *command,
        context.base,
        *(("--revision", context.revision) if context.revision else ()),
        *("--dtype", context.dtype, "--enable-lora"),
        *("--max-lora-rank", str(next((enough for enough in RANKS if enough >= rank), rank))),
        *("--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"),
        *flags,
    )
    server = _running.get(words)
    if server is None or server.ended:
        server = _running[words] = Server(words, _folder[0] / "cache" if _folder else context.cache)
    server.wait(timeout, context.say)
    return server


class Server:
    """A process that serves a base model. url, key: where, and what it wants to see. log: what it printed."""

    def __init__(self, words: tuple[str, ...], folder: Path):
        """words: of the command, without the address."""
        self._words, self.key, port = words, token_hex(), _free_port()
        self.url, self.log = f"http://127.0.0.1:{port}", folder / f"vllm-{port}.log"
        asked = [*words, "--host", "127.0.0.1", "--port", str(port)]
        with self.log.open("w", encoding="utf-8") as log:
            self._guard = subprocess.Popen(
                [sys.executable, "-P", "-m", "alignkit_vllm.guard", str(os.getpid()), *asked],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **ENVIRONMENT, "VLLM_API_KEY": self.key},
                start_new_session=True,  # Ctrl-C is for the run, which ends the server
            )

    @property
    def ended(self) -> bool:
        return self._guard.poll() is not None

    def wait(self, timeout: float, say: Callable[[str], None]) -> None:
        """Wait until it answers. Raises RunFailed if it ends before, or is too slow."""
        began = time.monotonic()
        while not self._answers():
            if self.ended:
                raise RunFailed(f"the server of vLLM did not start{self.explain()}")
            if time.monotonic() - began > timeout:
                self.end()
                raise RunFailed(
                    f"the server of vLLM was not ready after {timeout:.0f} seconds; raise 'timeout'{self.explain()}"
                )
            if time.monotonic() - began < POLL:
                say(f"starting vLLM, which can take minutes; its log is {self.log}")
            time.sleep(POLL)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=POLL * 4):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def explain(self) -> str:
        """How it ended, if it did, and the last error in its log."""
        lines = [line.strip() for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines()]
        # The last errors are often of those who wait for the process that failed: "see root cause above".
        # pydantic's say what is wrong in the next line.
        joined = [f"{one} {two}" if "validation error" in one else one for one, two in pairwise([*lines, ""])]
        found = [re.search(r"\w*Error: .*", line) for line in joined]
        errors = [match[0] for match in found if match and not re.search(r"root cause|stack trace", match[0])]
        errors = errors or [line for line in lines if line]
        how = f"; it ended with exit code {self._guard.poll()}" if self.ended else ""
        return f"{how}; its log {self.log} says: {errors[-1][:500] if errors else 'nothing'}"

    def release(self) -> None:
        """A stage is over: the server waits for the next one of the run, if there is a run."""
        if not _folder:
            self.end()

    def end(self) -> None:
        _running.pop(self._words, None)
        self._guard.terminate()
        try:
            self._guard.wait(ENDING)
        except subprocess.TimeoutExpired:
            self._guard.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
