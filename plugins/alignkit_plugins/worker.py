"""An engine in a process of its own on this machine: alignkit's sampler, asked over a pipe with one JSON per line.

It shows what an engine elsewhere needs, and samples what `local` does. The process ends with the run, however that
ends: its input is closed then.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

from alignkit import Completion, Engine, EngineContext, Register, RunFailed, hookimpl

MESSAGE = "\x1e"  # begins a message of the worker; whatever else is printed there is not one


class Worker(Engine):
    """Runs this module as a process, and passes every call on to it."""

    whole_models = True
    _process: subprocess.Popen[str] | None = None

    def prepare(self, context: EngineContext) -> None:
        self.context = context
        log = self._log = context.cache / "worker.log"
        facts = {name: value for name, value in vars(context).items() if name not in ("progress", "cache")}
        facts |= {"end_ids": sorted(context.end_ids), "model": context.model.model_dump(mode="json")}
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "alignkit_plugins.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # Ctrl-C is for the run, which ends the worker
            )
        self._ask("prepare", facts, str(context.cache))

    def publish(self, policy: str, adapter: Path | None, version: int) -> None:
        self._ask("publish", policy, None if adapter is None else str(adapter), version)

    def sample(self, policy: Any, prompts: Any, seeds: Any, params: Any) -> list[list[Completion]]:
        return [
            [Completion(**one) for one in each] for each in self._ask("sample", policy, prompts, seeds, asdict(params))
        ]

    def logprobs(self, policy: Any, prompts: Any, responses: Any, temperature: float = 1.0) -> list[Completion]:
        return [Completion(**one) for one in self._ask("logprobs", policy, prompts, responses, temperature)]

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            with self._process:  # waits, and closes the pipes
                pass

    def _ask(self, method: str, *arguments: Any) -> Any:
        """The worker's answer. Raises RunFailed if it failed or ended."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps([method, *arguments]) + "\n")
            process.stdin.flush()
        except OSError:
            raise self._ended(process) from None
        for line in process.stdout:
            if not line.startswith(MESSAGE):
                continue
            kind, value = json.loads(line[1:])
            if kind == "answer":
                return value
            if kind == "failure":
                raise RunFailed(f"the worker process failed in {method}: {value}")
            self.context.progress(value)
        raise self._ended(process)

    def _ended(self, process: subprocess.Popen[str]) -> RunFailed:
        code = process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return RunFailed(f"the worker process {how}{': ' + said[-1] if said else ''}")


# In the other process


def serve(requests: IO[str], replies: IO[str]) -> None:
    """Answer every request, until the input is closed."""
    from alignkit.engine import SamplingParams
    from alignkit.errors import AlignkitError
    from alignkit.settings import ModelSpec
    from alignkit_distributed.local_engine import LocalEngine

    def reply(kind: str, value: Any) -> None:
        replies.write(f"{MESSAGE}{json.dumps([kind, value], default=asdict)}\n")
        replies.flush()

    engine = LocalEngine(LocalEngine.Options())
    for line in _lines(requests):
        method, *arguments = json.loads(line)
        if method == "prepare":
            facts, cache = arguments
            facts |= {"end_ids": frozenset(facts["end_ids"]), "model": ModelSpec(**facts["model"])}
            arguments = [EngineContext(**facts, cache=Path(cache), progress=lambda done: reply("done", done))]
        elif method == "publish":
            arguments[1] = None if arguments[1] is None else Path(arguments[1])
        elif method == "sample":
            arguments[3] = replace(SamplingParams(**arguments[3]), stop=tuple(arguments[3]["stop"]))
        try:
            reply("answer", getattr(engine, method)(*arguments))
        except AlignkitError as error:
            reply("failure", str(error))


def _lines(requests: IO[str]) -> Any:
    """The lines of the input. Once it is closed, the process ends at once: nobody waits for an answer."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in requests:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield lines.get()


@hookimpl
def register_engines(register: Register) -> None:
    register("worker", Worker, summary="alignkit's sampler in a process of its own on this machine")


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
