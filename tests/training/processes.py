"""Runs on several simulated processes: threads with models of their own, which exchange what a
collectives gathers.

Only one works at a time, until it waits for the others: a library's global state has no races
between processes.
"""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from watched import Ran, replaced

from alignkit import Algorithm
from alignkit.models.packing import Examples
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import Run
from alignkit.training.collectives import Collectives
from alignkit.training.learner import Learner
from tests.rows import untimed, write_recipe

UNEVEN = (3, 1, 0)  # parts of every batch: the last process never has a row
SECONDS = 300  # longer than all processes need from one exchange to the next


class Watching(Collectives):
    """One process, with a record of its optimizer steps: the responses of the global batch, their
    signals, the metrics, and the gradients.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []


class Exchange:
    """A place for one post of each process."""

    def __init__(self, processes: int):
        self.posts: list[bytes] = [b""] * processes
        self.barrier = threading.Barrier(processes, timeout=SECONDS)
        self.turn = threading.Lock()

    def swap(self, process: int, post: bytes) -> list[bytes]:
        """Wait for the posts of all."""
        self.posts[process] = post
        self.turn.release()
        try:
            self.barrier.wait()
            posts = list(self.posts)
            self.barrier.wait()
        finally:
            self.turn.acquire()
        return posts


class Simulated(Watching):
    """One of several processes. parts: the sizes of their shares, in proportion."""

    def __init__(self, exchange: Exchange, process: int, parts: Sequence[int]):
        super().__init__()
        self.exchange, self.process, self.parts = exchange, process, parts
        self.processes = len(parts)

    def partition(self, sizes: Sequence[int], main_only: bool = False) -> list[list[int]]:
        """The first entry is the last process's, so that neither it nor its neighbors are in
        order.
        """
        if main_only:
            return super().partition(sizes, main_only)
        owners = [process for process, part in enumerate(self.parts) for _ in range(part)][::-1]
        entries = range(len(sizes))
        return [
            [i for i in entries if owners[i % len(owners)] == process]
            for process in range(self.processes)
        ]

    def gather(self, mine: Any) -> list[Any]:
        """As between processes, everything is a copy."""
        caller = sys._getframe(1).f_code.co_name
        given = self.exchange.swap(self.process, pickle.dumps((caller, mine)))
        callers, posts = zip(*map(pickle.loads, given), strict=True)
        assert {*callers} == {caller}, "the processes do not meet at the same place"
        return list(posts)

    def add_gradients(self, parameters: Iterable[Any]) -> None:
        """In the order of processes."""
        parameters = list(parameters)
        gathered = self.gather([parameter.grad for parameter in parameters])
        for parameter, gradients in zip(parameters, zip(*gathered, strict=True), strict=True):
            present = [gradient for gradient in gradients if gradient is not None]
            parameter.grad = torch.stack(present).sum(dim=0) if present else None


_step = Learner.step


def recorded_step(self: Learner, examples: Examples, lr_factor: float) -> dict[str, float]:
    metrics = _step(self, examples, lr_factor)
    if isinstance(self.collectives, Watching):
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        rows = [response.tokens for response in examples.responses]
        step = {"rows": rows, "metrics": metrics, "gradients": gradients}
        self.collectives.steps.append(
            copy.deepcopy(step | examples.columns | examples.token_columns)
        )
    return metrics


def run(
    folder: Path,
    recipe: dict[str, Any],
    parts: Sequence[int] = (),
    algorithm: type[Algorithm] | None = None,
) -> list[Ran]:
    """Run stages on as many processes as there are parts, or on one. Returns what each has
    left.

    algorithm: replaces that of the stage `align`.
    """
    path = write_recipe(folder, recipe)
    exchange = Exchange(len(parts) or 1)

    def process(number: int) -> Ran:
        collectives = Simulated(exchange, number, parts) if parts else Watching()
        out = folder / f"{len(parts)}-{number}"
        out.mkdir()
        with exchange.turn:
            try:
                loaded = load_recipe(path)
                loaded = loaded if algorithm is None else replaced(loaded, algorithm)
                made = Run(loaded, out, collectives=collectives)
                made.is_main_process = True  # each has a folder of its own, to be compared
                made.execute()
            except BaseException:
                exchange.barrier.abort()
                raise
        return Ran(made, untimed(out / "align" / "metrics.jsonl"))

    with ThreadPoolExecutor(exchange.barrier.parties) as threads:
        futures = [threads.submit(process, number) for number in range(exchange.barrier.parties)]
    # The others see that one has failed; its error is the one to see
    errors = [error for future in futures if (error := future.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]


def steps_of(ran: Ran) -> list[dict[str, Any]]:
    assert isinstance(ran.run.collectives, Watching)
    return ran.run.collectives.steps
