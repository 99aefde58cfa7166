"""Runs on several simulated processes: threads with models of their own, which exchange what a
collectives gathers.

Only one works at a time, until it waits for the others: a library's global state has no races
between processes.
"""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from watched import weights

from alignkit import Algorithm
from alignkit.data.group import read_groups
from alignkit.io.results import read_record
from alignkit.models.packing import Examples
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import Recipe
from alignkit.runs.run import Run
from alignkit.training.collectives import Collectives
from alignkit.training.learner import Learner
from tests.rows import untimed, write_recipe

UNEVEN = (3, 1, 0)  # parts of every batch: the last process never has a row
SECONDS = 300  # longer than all processes need from one exchange to the next


@dataclass
class Step:
    """An optimizer step: the responses of its global batch, their signals, the metrics, and the
    gradients.
    """

    rows: list[tuple[int, ...]]
    signals: dict[str, Any]
    metrics: dict[str, float]
    gradients: dict[str, Tensor]


class Watching(Collectives):
    """One process, with a record of its optimizer steps."""

    def __init__(self) -> None:
        self.steps: list[Step] = []


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
        self.exchange, self.process, self.processes, self.parts = (
            exchange,
            process,
            len(parts),
            parts,
        )

    def partition(self, sizes: Sequence[int], led: bool = False) -> list[list[int]]:
        """The first entry is the last process's, so that neither it nor its neighbors are in
        order.
        """
        if led:
            return super().partition(sizes, led)
        owners = [process for process, part in enumerate(self.parts) for _ in range(part)][::-1]
        entries = range(len(sizes))
        return [
            [i for i in entries if owners[i % len(owners)] == process]
            for process in range(self.processes)
        ]

    def gather(self, mine: Any) -> list[Any]:
        """As between processes, everything is a copy."""
        caller = sys._getframe(1).f_code.co_name
        posts = [
            pickle.loads(post)
            for post in self.exchange.swap(self.process, pickle.dumps((caller, mine)))
        ]
        assert {other for other, _ in posts} == {caller}, (
            "the processes do not meet at the same place"
        )
        return [post for _, post in posts]

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
        columns: dict[str, Any] = {**examples.columns, **examples.token_columns}
        gradients = {
            name: p.grad.clone() for name, p in self.parameters.items() if p.grad is not None
        }
        self.collectives.steps.append(
            Step([row.tokens for row in examples.rows], columns, dict(metrics), gradients)
        )
    return metrics


class _Run(Run):
    """A run as one process. algorithm: replaces that of the stage `align`."""

    def __init__(
        self, recipe: Recipe, out: Path, collectives: Collectives, algorithm: type[Algorithm] | None
    ):
        if algorithm is not None:
            stage = recipe.stages["align"]
            registration = replace(stage.component.registration, target=algorithm, kind="")
            recipe.stages["align"] = replace(
                stage, component=replace(stage.component, registration=registration)
            )
        super().__init__(recipe, out, collectives=collectives)
        self.leads = True  # each has a folder of its own, to be compared


@dataclass
class Ran:
    """What a process leaves behind: of the stage `align`, unless it says otherwise."""

    folder: Path
    steps: list[Step]
    metrics: list[dict[str, Any]] = field(init=False)
    summary: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = untimed(self.folder / "align" / "metrics.jsonl")
        self.summary = read_record(self.folder / "align")["summary"]

    @property
    def rollouts(self) -> list[Any]:
        """Every sample with its scores, by iteration."""
        paths = sorted((self.folder / "align" / "rollouts").glob("*.jsonl"))
        return [
            [[(r.tokens, r.scores) for r in group.responses] for group in read_groups(path)]
            for path in paths
        ]

    @property
    def weights(self) -> bytes:
        return weights(self.folder / "align" / "adapter")


def run(
    folder: Path,
    recipe: dict[str, Any],
    parts: Sequence[int] = (),
    algorithm: type[Algorithm] | None = None,
) -> list[Ran]:
    """Run stages on as many processes as there are parts, or on one. Returns what each has
    left.
    """
    path = write_recipe(folder, recipe)
    if not parts:
        return [_one(path, folder / "one", Watching(), algorithm)]
    exchange = Exchange(len(parts))

    def process(number: int) -> Ran:
        with exchange.turn:
            try:
                return _one(
                    path,
                    folder / f"process-{number}",
                    Simulated(exchange, number, parts),
                    algorithm,
                )
            except (
                threading.BrokenBarrierError
            ) as error:  # another process has failed; its error is the one to see
                raise TimeoutError("another process failed") from error
            except BaseException:
                exchange.barrier.abort()
                raise

    with ThreadPoolExecutor(len(parts)) as threads:
        futures = [threads.submit(process, number) for number in range(len(parts))]
    errors = [error for future in futures if (error := future.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, TimeoutError)):
        raise error
    return [future.result() for future in futures]


def _one(path: Path, out: Path, collectives: Watching, algorithm: type[Algorithm] | None) -> Ran:
    out.mkdir()
    _Run(load_recipe(path), out, collectives, algorithm).execute()
    return Ran(out, collectives.steps)
